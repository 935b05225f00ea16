#pragma once
// Certificates for tests, made in memory within milliseconds (ECDSA P-256).

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

namespace signvote::testing {

struct TestCertificate {
  std::string certificate_pem;
  std::string key_pem;
};

struct TestCertificateRequest {
  std::vector<std::string> dns_names = {};
  std::vector<std::string> uris = {};
  bool loopback_addresses = true;      // IP:127.0.0.1, IP:::1 and DNS:localhost too
  int64_t valid_from_seconds = -3600;  // relative to now
  int64_t valid_to_seconds = 24 * 3600;
};

// A certificate authority. Threads: not thread-safe.
class TestAuthority {
 public:
  explicit TestAuthority(const std::string& name);
  ~TestAuthority();
  TestAuthority(const TestAuthority&) = delete;
  TestAuthority& operator=(const TestAuthority&) = delete;
  const std::string& pem() const { return pem_; }
  TestCertificate Issue(const TestCertificateRequest& request);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
  std::string pem_;
};

// Writes `text` to folder/name with `mode` and returns the path.
std::string WriteTestFile(const std::string& folder, const std::string& name,
                          const std::string& text, uint32_t mode);

}  // namespace signvote::testing
