#include "proto/wire/security.h"

#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <algorithm>
#include <ctime>
#include <utility>

#include <grpc/grpc_security_constants.h>
#include <grpcpp/security/auth_context.h>

#include "absl/strings/str_cat.h"
#include "common/exit_codes.h"
#include "common/status.h"
#include "common/text.h"

namespace signvote::wire {
namespace {

constexpr uint64_t kPemBytesMax = 1 << 20;
constexpr char kRolePrefix[] = "signvote:role:";

template <typename T, void (*Free)(T*)>
struct Freer {
  void operator()(T* object) const { Free(object); }
};
void FreeBio(BIO* bio) { BIO_free(bio); }
void FreeCertificates(STACK_OF(X509) * stack) { sk_X509_pop_free(stack, X509_free); }
void FreeNames(GENERAL_NAMES* names) { GENERAL_NAMES_free(names); }
using BioPtr = std::unique_ptr<BIO, Freer<BIO, FreeBio>>;
using X509Ptr = std::unique_ptr<X509, Freer<X509, X509_free>>;
using KeyPtr = std::unique_ptr<EVP_PKEY, Freer<EVP_PKEY, EVP_PKEY_free>>;
using StorePtr = std::unique_ptr<X509_STORE, Freer<X509_STORE, X509_STORE_free>>;
using StoreContextPtr = std::unique_ptr<X509_STORE_CTX, Freer<X509_STORE_CTX, X509_STORE_CTX_free>>;
using StackPtr = std::unique_ptr<STACK_OF(X509), Freer<STACK_OF(X509), FreeCertificates>>;
using NamesPtr = std::unique_ptr<GENERAL_NAMES, Freer<GENERAL_NAMES, FreeNames>>;

BioPtr MemoryBio(const std::string& pem) {
  return BioPtr(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
}

// What OpenSSL does not take for the beginning of PEM is left out.
absl::StatusOr<std::string> ReadPem(FileSystem* fs, const std::string& path) {
  SIGNVOTE_ASSIGN_OR_RETURN(const std::string text, fs->ReadFile(path, kPemBytesMax));
  return std::string(WithoutMark(text));
}

std::vector<X509Ptr> ReadCertificates(const std::string& pem) {
  std::vector<X509Ptr> out;
  const BioPtr bio = MemoryBio(pem);
  while (X509* certificate = PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr))
    out.emplace_back(certificate);
  ERR_clear_error();  // the end of the file counts as an error
  return out;
}

// An empty passphrase, so that an encrypted key fails instead of asking on the terminal.
int NoPassphrase(char*, int, int, void*) { return 0; }

std::string FormatTime(const ASN1_TIME* time) {
  std::tm tm{};
  if (ASN1_TIME_to_tm(time, &tm) != 1) return "an unreadable date";
  char text[32];
  std::strftime(text, sizeof(text), "%Y-%m-%d %H:%M UTC", &tm);
  return text;
}

std::string SubjectOf(X509* certificate) {
  char text[256];
  X509_NAME_oneline(X509_get_subject_name(certificate), text, sizeof(text));
  return text;
}

// What is wrong with a file itself, whoever it is shown to.
absl::Status Unusable(const std::string& text) {
  return WithExitCode(absl::InvalidArgumentError(text), ExitCode::kBadInput);
}

absl::Status CheckValidity(X509* certificate, const std::string& path, int64_t now_unix_seconds) {
  time_t now = now_unix_seconds;
  if (X509_cmp_time(X509_get0_notAfter(certificate), &now) < 0) {
    return absl::FailedPreconditionError(absl::StrCat("certificate ", path, " expired on ",
                                                      FormatTime(X509_get0_notAfter(certificate)),
                                                      "; issue a new one (signvote certs)"));
  }
  if (X509_cmp_time(X509_get0_notBefore(certificate), &now) > 0) {
    return absl::FailedPreconditionError(absl::StrCat("certificate ", path, " is valid only from ",
                                                      FormatTime(X509_get0_notBefore(certificate)),
                                                      "; check this machine's clock"));
  }
  return absl::OkStatus();
}

absl::Status CheckChain(const std::vector<X509Ptr>& chain, const std::vector<X509Ptr>& authorities,
                        const TlsFiles& files, int64_t now_unix_seconds) {
  const StorePtr store(X509_STORE_new());
  for (const X509Ptr& authority : authorities) X509_STORE_add_cert(store.get(), authority.get());
  const StackPtr intermediates(sk_X509_new_null());
  for (size_t i = 1; i < chain.size(); ++i) {
    X509_up_ref(chain[i].get());
    sk_X509_push(intermediates.get(), chain[i].get());
  }
  const StoreContextPtr context(X509_STORE_CTX_new());
  if (X509_STORE_CTX_init(context.get(), store.get(), chain[0].get(), intermediates.get()) != 1) {
    return absl::InternalError("OpenSSL could not set up a certificate check");
  }
  X509_VERIFY_PARAM_set_time(X509_STORE_CTX_get0_param(context.get()), now_unix_seconds);
  const bool verified = X509_verify_cert(context.get()) == 1;
  const int error = X509_STORE_CTX_get_error(context.get());
  ERR_clear_error();
  if (verified) return absl::OkStatus();
  if (error == X509_V_ERR_CERT_HAS_EXPIRED) {
    return absl::FailedPreconditionError(absl::StrCat("a certificate authority in ", files.ca,
                                                      " or the chain in ", files.certificate,
                                                      " expired; issue new ones (signvote certs)"));
  }
  return absl::FailedPreconditionError(
      absl::StrCat("certificate ", files.certificate, " (", SubjectOf(chain[0].get()),
                   ") was not issued by ", files.ca, ": ", X509_verify_cert_error_string(error),
                   "; use the certificates of one authority"));
}

void ReadAlternativeNames(X509* certificate, TlsMaterial* material) {
  const NamesPtr names(static_cast<GENERAL_NAMES*>(
      X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr)));
  if (names == nullptr) return;
  for (int i = 0; i < sk_GENERAL_NAME_num(names.get()); ++i) {
    const GENERAL_NAME* const name = sk_GENERAL_NAME_value(names.get(), i);
    if (name->type != GEN_DNS && name->type != GEN_URI) continue;
    const ASN1_STRING* const value =
        name->type == GEN_DNS ? name->d.dNSName : name->d.uniformResourceIdentifier;
    std::string text(reinterpret_cast<const char*>(ASN1_STRING_get0_data(value)),
                     static_cast<size_t>(ASN1_STRING_length(value)));
    (name->type == GEN_DNS ? material->dns_names : material->uris).push_back(std::move(text));
  }
}

std::vector<std::string> Values(const grpc::AuthContext& context, const char* property) {
  std::vector<std::string> out;
  for (const grpc::string_ref& value : context.FindPropertyValues(property)) {
    out.emplace_back(value.data(), value.size());
  }
  return out;
}

Peer PeerFrom(const grpc::AuthContext* context, std::string address) {
  Peer peer;
  peer.address = std::move(address);
  if (context == nullptr) return peer;
  // gRPC also calls plaintext on loopback "authenticated" in some builds; only a verified
  // certificate counts here.
  const std::vector<std::string> transport =
      Values(*context, GRPC_TRANSPORT_SECURITY_TYPE_PROPERTY_NAME);
  if (transport.empty() || transport[0] != "ssl" || !context->IsPeerAuthenticated()) return peer;
  peer.authenticated = true;
  peer.dns_names = Values(*context, GRPC_PEER_DNS_PROPERTY_NAME);
  for (const std::string& uri : Values(*context, GRPC_PEER_URI_PROPERTY_NAME)) {
    if (uri == std::string(kRolePrefix) + "server") peer.roles.push_back(Role::kServer);
    if (uri == std::string(kRolePrefix) + "worker") peer.roles.push_back(Role::kWorker);
    if (uri == std::string(kRolePrefix) + "admin") peer.roles.push_back(Role::kAdmin);
  }
  return peer;
}

}  // namespace

absl::StatusOr<TlsMaterial> LoadTls(FileSystem* fs, const TlsFiles& files,
                                    int64_t now_unix_seconds) {
  const std::pair<const char*, const std::string*> parts[] = {
      {"--tls-ca", &files.ca},
      {"--tls-certificate", &files.certificate},
      {"--tls-key", &files.key}};
  for (const auto& [flag, path] : parts) {
    if (path->empty()) {
      return absl::InvalidArgumentError(absl::StrCat(
          flag,
          " is missing: TLS needs --tls-ca, --tls-certificate and --tls-key (plaintext only "
          "with --insecure)"));
    }
  }
  TlsMaterial material;
  SIGNVOTE_ASSIGN_OR_RETURN(material.ca_pem, ReadPem(fs, files.ca));
  SIGNVOTE_ASSIGN_OR_RETURN(material.certificate_pem, ReadPem(fs, files.certificate));
  SIGNVOTE_RETURN_IF_ERROR(fs->RequirePrivate(files.key));
  SIGNVOTE_ASSIGN_OR_RETURN(material.key_pem, ReadPem(fs, files.key));

  const std::vector<X509Ptr> authorities = ReadCertificates(material.ca_pem);
  if (authorities.empty()) return Unusable(absl::StrCat(files.ca, " holds no PEM certificate"));
  const std::vector<X509Ptr> chain = ReadCertificates(material.certificate_pem);
  if (chain.empty()) return Unusable(absl::StrCat(files.certificate, " holds no PEM certificate"));
  const BioPtr key_bio = MemoryBio(material.key_pem);
  const KeyPtr key(PEM_read_bio_PrivateKey(key_bio.get(), nullptr, &NoPassphrase, nullptr));
  ERR_clear_error();
  if (key == nullptr) {
    return Unusable(absl::StrCat(files.key, " holds no unencrypted PEM private key"));
  }
  const bool belongs = X509_check_private_key(chain[0].get(), key.get()) == 1;
  ERR_clear_error();
  if (!belongs) {
    return Unusable(absl::StrCat("key ", files.key, " does not belong to certificate ",
                                 files.certificate, "; give the two that were made together"));
  }
  SIGNVOTE_RETURN_IF_ERROR(CheckValidity(chain[0].get(), files.certificate, now_unix_seconds));
  SIGNVOTE_RETURN_IF_ERROR(CheckChain(chain, authorities, files, now_unix_seconds));
  ReadAlternativeNames(chain[0].get(), &material);
  return material;
}

absl::Status RequireServerRole(const TlsMaterial& material, const TlsFiles& files) {
  const std::string wanted = std::string(kRolePrefix) + "server";
  if (std::find(material.uris.begin(), material.uris.end(), wanted) != material.uris.end())
    return absl::OkStatus();
  return Unusable(absl::StrCat("certificate ", files.certificate, " lacks the URI ", wanted,
                               ": workers would refuse this server; give a server's certificate "
                               "(signvote certs makes one)"));
}

std::shared_ptr<grpc::ServerCredentials> MtlsServerCredentials(const TlsMaterial& material) {
  grpc::SslServerCredentialsOptions options(
      GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY);
  options.pem_root_certs = material.ca_pem;
  options.pem_key_cert_pairs.push_back({material.key_pem, material.certificate_pem});
  return grpc::SslServerCredentials(options);
}

std::shared_ptr<grpc::ChannelCredentials> MtlsChannelCredentials(const TlsMaterial& material) {
  grpc::SslCredentialsOptions options;
  options.pem_root_certs = material.ca_pem;
  options.pem_private_key = material.key_pem;
  options.pem_cert_chain = material.certificate_pem;
  return grpc::SslCredentials(options);
}

bool Peer::HasRole(Role role) const {
  return std::find(roles.begin(), roles.end(), role) != roles.end();
}

Peer PeerOf(const grpc::ServerContextBase& context) {
  return PeerFrom(context.auth_context().get(), context.peer());
}
Peer PeerOf(const grpc::ClientContext& context) {
  return PeerFrom(context.auth_context().get(), context.peer());
}

}  // namespace signvote::wire
