#include "ctl/certs.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <sstream>

#include "common/exit_codes.h"

namespace signvote::ctl {
namespace {

constexpr int64_t kNow = 1'800'000'000;  // 2027-01-15
constexpr int64_t kDay = 86400;

template <auto Free>
struct Deleter {
  template <typename T>
  void operator()(T* p) const {
    Free(p);
  }
};
using Certificate = std::unique_ptr<X509, Deleter<X509_free>>;
using Key = std::unique_ptr<EVP_PKEY, Deleter<EVP_PKEY_free>>;
using Bio = std::unique_ptr<BIO, Deleter<BIO_free_all>>;
using Store = std::unique_ptr<X509_STORE, Deleter<X509_STORE_free>>;
using StoreContext = std::unique_ptr<X509_STORE_CTX, Deleter<X509_STORE_CTX_free>>;
using Parameters = std::unique_ptr<X509_VERIFY_PARAM, Deleter<X509_VERIFY_PARAM_free>>;

std::string Slurp(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::stringstream text;
  text << in.rdbuf();
  return text.str();
}

class CertsTest : public testing::Test {
 protected:
  void SetUp() override {
    std::string pattern = testing::TempDir() + "certs_test.XXXXXX";
    ASSERT_NE(mkdtemp(pattern.data()), nullptr);
    root_ = pattern;
  }
  void TearDown() override { std::filesystem::remove_all(root_); }

  std::string Path(const std::string& name) const { return root_ + "/tls/" + name; }

  absl::StatusOr<CertsReport> Make(std::vector<std::string> servers,
                                   std::vector<std::string> workers, int64_t now = kNow,
                                   int days = 365) {
    return MakeCerts(FileSystem::Posix(), {.directory = root_ + "/tls",
                                           .server_names = std::move(servers),
                                           .workers = std::move(workers),
                                           .days = days,
                                           .now_unix_seconds = now});
  }
  Certificate Read(const std::string& name) const {
    const std::string pem = Slurp(Path(name));
    const Bio bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
    return Certificate(PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr));
  }
  Key ReadKey(const std::string& name) const {
    const std::string pem = Slurp(Path(name));
    const Bio bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
    return Key(PEM_read_bio_PrivateKey(bio.get(), nullptr, nullptr, nullptr));
  }
  // X509_V_OK, or why the chain of `name` up to `ca` does not stand for `purpose` at time `now`.
  int Verify(const std::string& name, const std::string& ca, int purpose,
             int64_t now = kNow) const {
    const Certificate leaf = Read(name), authority = Read(ca);
    const Store store(X509_STORE_new());
    X509_STORE_add_cert(store.get(), authority.get());
    const StoreContext context(X509_STORE_CTX_new());
    X509_STORE_CTX_init(context.get(), store.get(), leaf.get(), nullptr);
    X509_VERIFY_PARAM* parameters = X509_STORE_CTX_get0_param(context.get());
    X509_VERIFY_PARAM_set_time(parameters, now);
    X509_VERIFY_PARAM_set_flags(parameters,
                                X509_V_FLAG_X509_STRICT | X509_V_FLAG_CHECK_SS_SIGNATURE);
    X509_VERIFY_PARAM_set_purpose(parameters, purpose);
    return X509_verify_cert(context.get()) == 1 ? X509_V_OK
                                                : X509_STORE_CTX_get_error(context.get());
  }
  // Every URI among the subject alternative names.
  std::vector<std::string> Uris(const std::string& name) const {
    std::vector<std::string> uris;
    const Certificate certificate = Read(name);
    auto* names = static_cast<GENERAL_NAMES*>(
        X509_get_ext_d2i(certificate.get(), NID_subject_alt_name, nullptr, nullptr));
    for (int i = 0; i < sk_GENERAL_NAME_num(names); ++i) {
      const GENERAL_NAME* item = sk_GENERAL_NAME_value(names, i);
      if (item->type != GEN_URI) continue;
      const ASN1_STRING* uri = item->d.uniformResourceIdentifier;
      uris.emplace_back(reinterpret_cast<const char*>(ASN1_STRING_get0_data(uri)),
                        static_cast<size_t>(ASN1_STRING_length(uri)));
    }
    GENERAL_NAMES_free(names);
    return uris;
  }
  uint32_t Mode(const std::string& name) const {
    struct stat info;
    EXPECT_EQ(::stat(Path(name).c_str(), &info), 0) << name;
    return info.st_mode & 0777;
  }

  std::string root_;
};

TEST_F(CertsTest, EveryChainStandsForItsOwnPurposeOnly) {
  ASSERT_TRUE(Make({"train.example.org", "10.1.2.3"}, {"alpha", "beta"}).ok());
  EXPECT_EQ(Verify("server.crt", "ca.crt", X509_PURPOSE_SSL_SERVER), X509_V_OK);
  EXPECT_EQ(Verify("admin.crt", "ca.crt", X509_PURPOSE_SSL_CLIENT), X509_V_OK);
  EXPECT_EQ(Verify("workers/alpha/worker.crt", "workers/alpha/ca.crt", X509_PURPOSE_SSL_CLIENT),
            X509_V_OK);
  EXPECT_EQ(Verify("workers/beta/worker.crt", "ca.crt", X509_PURPOSE_SSL_CLIENT), X509_V_OK);
  EXPECT_EQ(Verify("workers/alpha/worker.crt", "ca.crt", X509_PURPOSE_SSL_SERVER),
            X509_V_ERR_INVALID_PURPOSE);
  EXPECT_EQ(Verify("server.crt", "ca.crt", X509_PURPOSE_SSL_CLIENT), X509_V_ERR_INVALID_PURPOSE);
}

TEST_F(CertsTest, RolesAndNamesAreSubjectAlternativeNames) {
  ASSERT_TRUE(Make({"train.example.org", "10.1.2.3", "fd00::7"}, {"alpha"}).ok());
  EXPECT_THAT(Uris("server.crt"), testing::ElementsAre("signvote:role:server"));
  EXPECT_THAT(Uris("admin.crt"), testing::ElementsAre("signvote:role:admin"));
  EXPECT_THAT(Uris("workers/alpha/worker.crt"), testing::ElementsAre("signvote:role:worker"));
  const Certificate server = Read("server.crt"), worker = Read("workers/alpha/worker.crt");
  const auto host = [](X509* c, const char* name) {
    return X509_check_host(c, name, 0, X509_CHECK_FLAG_NEVER_CHECK_SUBJECT, nullptr);
  };
  EXPECT_EQ(host(server.get(), "train.example.org"), 1);
  EXPECT_EQ(host(server.get(), "localhost"), 1);
  EXPECT_EQ(host(server.get(), "elsewhere.example.org"), 0);
  for (const char* address : {"127.0.0.1", "::1", "10.1.2.3", "fd00::7"}) {
    EXPECT_EQ(X509_check_ip_asc(server.get(), address, 0), 1) << address;
  }
  EXPECT_EQ(X509_check_ip_asc(server.get(), "10.1.2.4", 0), 0);
  EXPECT_EQ(host(worker.get(), "alpha"), 1);
  EXPECT_EQ(host(worker.get(), "beta"), 0);
}

TEST_F(CertsTest, KeysAreEcdsaP256AndBelongToTheirCertificates) {
  ASSERT_TRUE(Make({}, {"alpha"}).ok());
  for (const char* name : {"ca", "server", "admin", "workers/alpha/worker"}) {
    const Key key = ReadKey(std::string(name) + ".key");
    const Certificate certificate = Read(std::string(name) + ".crt");
    ASSERT_TRUE(key && certificate) << name;
    char group[32] = "";
    ASSERT_EQ(EVP_PKEY_get_group_name(key.get(), group, sizeof(group), nullptr), 1);
    EXPECT_STREQ(group, "prime256v1") << name;
    EXPECT_EQ(X509_check_private_key(certificate.get(), key.get()), 1) << name;
    EXPECT_EQ(X509_get_version(certificate.get()), X509_VERSION_3) << name;
  }
}

TEST_F(CertsTest, ValidityIsWhatWasAskedFor) {
  ASSERT_TRUE(Make({}, {"alpha"}, kNow, 10).ok());
  const char* leaf = "workers/alpha/worker.crt";
  EXPECT_EQ(Verify(leaf, "ca.crt", X509_PURPOSE_SSL_CLIENT, kNow + 10 * kDay - 60), X509_V_OK);
  EXPECT_EQ(Verify(leaf, "ca.crt", X509_PURPOSE_SSL_CLIENT, kNow + 10 * kDay + 60),
            X509_V_ERR_CERT_HAS_EXPIRED);
  EXPECT_EQ(Verify(leaf, "ca.crt", X509_PURPOSE_SSL_CLIENT, kNow - 1800), X509_V_OK);
  EXPECT_EQ(Verify(leaf, "ca.crt", X509_PURPOSE_SSL_CLIENT, kNow - 2 * kDay),
            X509_V_ERR_CERT_NOT_YET_VALID);
}

TEST_F(CertsTest, SecretsAreReadableByTheirOwnerOnly) {
  ASSERT_TRUE(Make({}, {"alpha"}).ok());
  for (const char* name : {"ca.key", "server.key", "admin.key", "tokens",
                           "workers/alpha/worker.key", "workers/alpha/token"}) {
    EXPECT_EQ(Mode(name), 0600u) << name;
  }
  for (const char* name : {"", "workers", "workers/alpha"}) EXPECT_EQ(Mode(name), 0700u) << name;
}

TEST_F(CertsTest, TheServersTokenFileHoldsEachWorkersToken) {
  ASSERT_TRUE(Make({}, {"alpha", "beta"}).ok());
  const std::string alpha = Slurp(Path("workers/alpha/token")),
                    beta = Slurp(Path("workers/beta/token"));
  EXPECT_EQ(alpha.size(), 65u);
  EXPECT_NE(alpha, beta);
  EXPECT_EQ(Slurp(Path("tokens")), "alpha " + alpha + "beta " + beta);
}

TEST_F(CertsTest, RunningAgainAddsWorkersAndKeepsEverythingElse) {
  ASSERT_TRUE(Make({"train.example.org"}, {"alpha"}).ok());
  std::vector<std::pair<std::string, std::string>> before;
  for (const char* name :
       {"ca.key", "ca.crt", "server.key", "server.crt", "admin.key", "admin.crt",
        "workers/alpha/worker.key", "workers/alpha/worker.crt", "workers/alpha/token"}) {
    before.emplace_back(name, Slurp(Path(name)));
  }
  const std::string tokens = Slurp(Path("tokens"));
  const auto report = Make({"train.example.org"}, {"alpha", "beta"}, kNow + kDay);
  ASSERT_TRUE(report.ok()) << report.status();
  for (const auto& [name, bytes] : before) EXPECT_EQ(Slurp(Path(name)), bytes) << name;
  EXPECT_THAT(report->created, testing::UnorderedElementsAre(
                                   "workers/beta/ca.crt", "workers/beta/worker.key",
                                   "workers/beta/worker.crt", "workers/beta/token", "tokens"));
  EXPECT_EQ(Slurp(Path("tokens")), tokens + "beta " + Slurp(Path("workers/beta/token")));
  EXPECT_EQ(Verify("workers/beta/worker.crt", "ca.crt", X509_PURPOSE_SSL_CLIENT, kNow + kDay),
            X509_V_OK);

  const auto third = Make({}, {"alpha", "beta"}, kNow + kDay);
  ASSERT_TRUE(third.ok());
  EXPECT_THAT(third->created, testing::IsEmpty());
}

TEST_F(CertsTest, ANewServerNameRenewsTheCertificateForTheSameKey) {
  ASSERT_TRUE(Make({"one.example.org"}, {}).ok());
  const std::string key = Slurp(Path("server.key"));
  ASSERT_TRUE(Make({"two.example.org"}, {}).ok());
  EXPECT_EQ(Slurp(Path("server.key")), key);
  const Certificate server = Read("server.crt");
  for (const char* name : {"one.example.org", "two.example.org", "localhost"}) {
    EXPECT_EQ(X509_check_host(server.get(), name, 0, 0, nullptr), 1) << name;
  }
  EXPECT_EQ(X509_check_private_key(server.get(), ReadKey("server.key").get()), 1);
  EXPECT_EQ(Verify("server.crt", "ca.crt", X509_PURPOSE_SSL_SERVER), X509_V_OK);
}

// Clusters and people use '_' where the Internet's names have none.
TEST_F(CertsTest, NamesWithAnUnderscoreHaveCertificates) {
  const auto report = Make({"gpu_1.cluster", "[2001:db8::1]"}, {"worker_1"});
  ASSERT_TRUE(report.ok()) << report.status();
  const Certificate server = Read("server.crt");
  EXPECT_EQ(X509_check_host(server.get(), "gpu_1.cluster", 0, 0, nullptr), 1);
  EXPECT_EQ(X509_check_ip_asc(server.get(), "2001:db8::1", 0), 1);
  const Certificate worker = Read("workers/worker_1/worker.crt");
  EXPECT_EQ(X509_check_host(worker.get(), "worker_1", 0, 0, nullptr), 1);
}

TEST_F(CertsTest, TokensAreReadAsServerAndWorkersReadThem) {
  ASSERT_TRUE(Make({}, {"alpha", "beta"}).ok());
  const auto write = [&](const char* name, std::string_view text) {
    ASSERT_TRUE(WriteFileAtomically(FileSystem::Posix(), Path(name), text, 0600).ok());
  };
  write("tokens", "\xef\xbb\xbf# of this room\r\nalpha\ta#1\r\nbeta  b # the second");
  write("workers/alpha/token", "a#1\r\n");
  std::filesystem::remove(Path("workers/beta/token"));
  const auto report = Make({}, {"alpha", "beta", "gamma"});
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(Slurp(Path("workers/beta/token")), "b\n");
  EXPECT_EQ(Slurp(Path("tokens")),
            "\xef\xbb\xbf# of this room\r\nalpha\ta#1\r\nbeta  b # the second\ngamma " +
                Slurp(Path("workers/gamma/token")));
  write("tokens", "alpha\n");
  const absl::Status status = Make({}, {"delta"}).status();
  EXPECT_EQ(ExitCodeFor(status), ExitCode::kBadInput);
  EXPECT_NE(status.message().find(Path("tokens") + ":1: expected"), absl::string_view::npos);
}

TEST_F(CertsTest, AnInterruptedRunIsFinishedByTheNext) {
  ASSERT_TRUE(Make({}, {"alpha"}).ok());
  const std::string key = Slurp(Path("workers/alpha/worker.key")),
                    token = Slurp(Path("workers/alpha/token"));
  std::filesystem::remove(Path("workers/alpha/worker.crt"));
  std::filesystem::remove(Path("tokens"));
  ASSERT_TRUE(Make({}, {"alpha"}).ok());
  EXPECT_EQ(Slurp(Path("workers/alpha/worker.key")), key);
  EXPECT_EQ(Verify("workers/alpha/worker.crt", "ca.crt", X509_PURPOSE_SSL_CLIENT), X509_V_OK);
  EXPECT_EQ(Slurp(Path("tokens")), "alpha " + token);
}

TEST_F(CertsTest, ACertificateWithoutItsKeyIsRefusedByName) {
  ASSERT_TRUE(Make({}, {}).ok());
  std::filesystem::remove(Path("ca.key"));
  const auto report = Make({}, {"alpha"});
  EXPECT_EQ(report.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_EQ(ExitCodeFor(report.status()), ExitCode::kBadInput);
  EXPECT_THAT(std::string(report.status().message()), testing::HasSubstr(Path("ca.key")));
}

TEST_F(CertsTest, AForeignKeyIsRefusedByName) {
  ASSERT_TRUE(Make({}, {"alpha"}).ok());
  std::filesystem::copy_file(Path("admin.key"), Path("workers/alpha/worker.key"),
                             std::filesystem::copy_options::overwrite_existing);
  const auto report = Make({}, {"alpha"});
  EXPECT_EQ(report.status().code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_THAT(std::string(report.status().message()),
              testing::HasSubstr("workers/alpha/worker.crt"));
}

TEST_F(CertsTest, WhatAnotherAuthorityIssuedIsNotKeptInSilence) {
  ASSERT_TRUE(Make({}, {"w1"}).ok());
  std::filesystem::remove(Path("ca.key"));
  std::filesystem::remove(Path("ca.crt"));
  for (const char* file :
       {"server.crt", "admin.crt", "workers/w1/ca.crt", "workers/w1/worker.crt"}) {
    const absl::Status status = Make({}, {"w1"}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kFailedPrecondition) << file;
    EXPECT_NE(status.message().find(Path(file)), absl::string_view::npos) << status;
    EXPECT_NE(status.message().find("remove it"), absl::string_view::npos) << status;
    std::filesystem::remove(Path(file));  // what the message says
  }
  EXPECT_TRUE(Make({}, {"w1"}).ok());
}

TEST_F(CertsTest, AnExpiredCertificateIsNamedAndIssuedAnewOnceItIsRemoved) {
  ASSERT_TRUE(Make({}, {}, kNow, 30).ok());
  const absl::Status status = Make({}, {}, kNow + 31 * kDay, 30).status();
  EXPECT_NE(status.message().find(Path("server.crt") + ": has expired"), absl::string_view::npos)
      << status;
  std::filesystem::remove(Path("server.crt"));
  std::filesystem::remove(Path("admin.crt"));
  EXPECT_TRUE(Make({}, {}, kNow + 31 * kDay, 30).ok());
}

TEST_F(CertsTest, UnusableOptionsWriteNothing) {
  EXPECT_EQ(Make({}, {"../alpha"}).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Make({"host,URI:signvote:role:admin"}, {}).status().code(),
            absl::StatusCode::kInvalidArgument);
  for (const char* name : {"host:7070", "https://host", "[host]", "", "a b"}) {
    const absl::Status status = Make({name}, {}).status();
    EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument) << name;
    EXPECT_NE(status.message().find("--server-name '"), absl::string_view::npos) << status;
  }
  EXPECT_EQ(Make({}, {}, kNow, 0).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(Make({}, {}, kNow, 3650).status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_FALSE(std::filesystem::exists(Path("")));
}

}  // namespace
}  // namespace signvote::ctl
