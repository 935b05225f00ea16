#include "server/rpc/tls_credentials.h"

#include <string>
#include <utility>

#include <grpc/grpc.h>
#include <grpc/grpc_security.h>

#include "common/check.h"

namespace signvote::rpc {
namespace {

// gRPC's C++ wrapper has no server credentials that change; its core asks a callback before each
// handshake.
class Credentials final : public grpc::ServerCredentials {
 public:
  explicit Credentials(std::shared_ptr<TlsSource> source)
      : source_(std::move(source)),
        credentials_(grpc_ssl_server_credentials_create_with_options(
            grpc_ssl_server_credentials_create_options_using_config_fetcher(
                GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY, &Fetch, this))) {
    SIGNVOTE_CHECK(credentials_ != nullptr);
  }
  ~Credentials() override { grpc_server_credentials_release(credentials_); }
  Credentials(const Credentials&) = delete;
  Credentials& operator=(const Credentials&) = delete;

  void SetAuthMetadataProcessor(
      const std::shared_ptr<grpc::AuthMetadataProcessor>& /*processor*/) override {
    SIGNVOTE_CHECK(false);  // who may call is decided by what is called
  }

 private:
  int AddPortToServer(const std::string& address, grpc_server* server) override {
    return grpc_server_add_http2_port(server, address.c_str(), credentials_);
  }

  static grpc_ssl_certificate_config_reload_status Fetch(
      void* self, grpc_ssl_server_certificate_config** config) {
    return static_cast<Credentials*>(self)->Fetch(config);
  }
  grpc_ssl_certificate_config_reload_status Fetch(grpc_ssl_server_certificate_config** config) {
    MutexLock lock(&mu_);
    const uint64_t version = source_->version();
    if (version == fetched_) return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    const wire::TlsMaterial material = source_->material();
    const grpc_ssl_pem_key_cert_pair pair{material.key_pem.c_str(),
                                          material.certificate_pem.c_str()};
    *config = grpc_ssl_server_certificate_config_create(material.ca_pem.c_str(), &pair, 1);
    fetched_ = version;
    return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
  }

  const std::shared_ptr<TlsSource> source_;

  Mutex mu_;
  uint64_t fetched_ ABSL_GUARDED_BY(mu_) = 0;

  grpc_server_credentials* const credentials_;  // last: its making asks Fetch()
};

}  // namespace

TlsSource::TlsSource(wire::TlsMaterial material) : material_(std::move(material)) {}

void TlsSource::Replace(wire::TlsMaterial material) {
  MutexLock lock(&mu_);
  material_ = std::move(material);
  ++version_;
}

uint64_t TlsSource::version() const {
  MutexLock lock(&mu_);
  return version_;
}

wire::TlsMaterial TlsSource::material() const {
  MutexLock lock(&mu_);
  return material_;
}

std::shared_ptr<grpc::ServerCredentials> ReloadingCredentials(std::shared_ptr<TlsSource> source) {
  return std::make_shared<Credentials>(std::move(source));
}

}  // namespace signvote::rpc
