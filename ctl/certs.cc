#include "ctl/certs.h"

#include <arpa/inet.h>
#include <openssl/bn.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <algorithm>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "common/exit_codes.h"
#include "common/host_port.h"
#include "common/ids.h"
#include "common/join_token.h"
#include "common/status.h"

namespace signvote::ctl {
namespace {

constexpr int64_t kSecondsPerDay = 86400;
constexpr int64_t kClockSkewSeconds = 3600;
constexpr int kAuthorityDays = 3650;
constexpr int kDaysMax = kAuthorityDays - 1;
constexpr int kSerialBits = 127;
constexpr size_t kTokenBytes = 32;
constexpr uint64_t kFileBytesMax = 16u << 20;
constexpr uint32_t kPrivateMode = 0600;
constexpr uint32_t kPublicMode = 0644;
constexpr uint32_t kFolderMode = 0700;

template <auto Free>
struct Deleter {
  template <typename T>
  void operator()(T* p) const {
    Free(p);
  }
};
using Key = std::unique_ptr<EVP_PKEY, Deleter<EVP_PKEY_free>>;
using Certificate = std::unique_ptr<X509, Deleter<X509_free>>;
using Bio = std::unique_ptr<BIO, Deleter<BIO_free_all>>;
using BigNumber = std::unique_ptr<BIGNUM, Deleter<BN_free>>;
using Extension = std::unique_ptr<X509_EXTENSION, Deleter<X509_EXTENSION_free>>;
using Names = std::unique_ptr<GENERAL_NAMES, Deleter<GENERAL_NAMES_free>>;

// What OpenSSL has to say about the call that just failed.
absl::Status OpensslError(const std::string& what) {
  char text[256] = "no reason given";
  if (const unsigned long code = ERR_get_error(); code != 0) {
    ERR_error_string_n(code, text, sizeof(text));
  }
  ERR_clear_error();
  return absl::InternalError(absl::StrCat(what, ": ", text));
}

// A damaged or mismatched file of ours: the user must repair or remove it.
absl::Status FileProblem(const std::string& path, const std::string& what) {
  ERR_clear_error();
  return WithExitCode(absl::FailedPreconditionError(absl::StrCat(path, ": ", what)),
                      ExitCode::kBadInput);
}

absl::StatusOr<std::string> BioText(BIO* bio) {
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  if (size <= 0 || data == nullptr) return OpensslError("writing PEM");
  return std::string(data, static_cast<size_t>(size));
}

absl::StatusOr<std::string> KeyPem(EVP_PKEY* key) {
  const Bio bio(BIO_new(BIO_s_mem()));
  if (!bio ||
      PEM_write_bio_PKCS8PrivateKey(bio.get(), key, nullptr, nullptr, 0, nullptr, nullptr) != 1) {
    return OpensslError("writing a private key");
  }
  return BioText(bio.get());
}

absl::StatusOr<std::string> CertificatePem(X509* certificate) {
  const Bio bio(BIO_new(BIO_s_mem()));
  if (!bio || PEM_write_bio_X509(bio.get(), certificate) != 1) {
    return OpensslError("writing a certificate");
  }
  return BioText(bio.get());
}

absl::StatusOr<Key> ParseKey(const std::string& path, const std::string& pem) {
  const Bio bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
  Key key(bio ? PEM_read_bio_PrivateKey(bio.get(), nullptr, nullptr, nullptr) : nullptr);
  if (!key)
    return FileProblem(path,
                       "not a PEM private key; restore it, or remove it with its certificate");
  return key;
}

absl::StatusOr<Certificate> ParseCertificate(const std::string& path, const std::string& pem) {
  const Bio bio(BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
  Certificate certificate(bio ? PEM_read_bio_X509(bio.get(), nullptr, nullptr, nullptr) : nullptr);
  if (!certificate)
    return FileProblem(path, "not a PEM certificate; restore it, or remove it with its key");
  return certificate;
}

// Issues into `certificate`; `issuer` is itself for the authority.
absl::Status AddExtension(X509* certificate, X509* issuer, int nid, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx_nodb(&context);
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  const Extension extension(X509V3_EXT_conf_nid(nullptr, &context, nid, value.c_str()));
  if (!extension || X509_add_ext(certificate, extension.get(), -1) != 1) {
    return OpensslError(absl::StrCat("certificate extension ", OBJ_nid2sn(nid)));
  }
  return absl::OkStatus();
}

struct Request {
  std::string common_name;
  EVP_PKEY* key = nullptr;
  int64_t not_before = 0, not_after = 0;  // Unix seconds
  std::vector<std::pair<int, std::string>> extensions;
};

// Signed by `issuer_key`; by itself when `issuer` is null.
absl::StatusOr<Certificate> Issue(const Request& request, X509* issuer, EVP_PKEY* issuer_key) {
  Certificate certificate(X509_new());
  const BigNumber serial(BN_new());
  if (!certificate || !serial) return OpensslError("allocating a certificate");
  if (BN_rand(serial.get(), kSerialBits, BN_RAND_TOP_ONE, BN_RAND_BOTTOM_ANY) != 1 ||
      BN_to_ASN1_INTEGER(serial.get(), X509_get_serialNumber(certificate.get())) == nullptr) {
    return OpensslError("drawing a serial number");
  }
  X509_NAME* subject = X509_get_subject_name(certificate.get());
  const auto add = [subject](const char* field, const std::string& text) {
    return X509_NAME_add_entry_by_txt(subject, field, MBSTRING_UTF8,
                                      reinterpret_cast<const unsigned char*>(text.data()),
                                      static_cast<int>(text.size()), -1, 0) == 1;
  };
  if (X509_set_version(certificate.get(), X509_VERSION_3) != 1 ||
      !add("O", "signvote development") || !add("CN", request.common_name) ||
      X509_set_issuer_name(certificate.get(),
                           issuer == nullptr ? subject : X509_get_subject_name(issuer)) != 1 ||
      X509_set_pubkey(certificate.get(), request.key) != 1 ||
      ASN1_TIME_set(X509_getm_notBefore(certificate.get()), request.not_before) == nullptr ||
      ASN1_TIME_set(X509_getm_notAfter(certificate.get()), request.not_after) == nullptr) {
    return OpensslError("filling in a certificate");
  }
  X509* const signer = issuer == nullptr ? certificate.get() : issuer;
  for (const auto& [nid, value] : request.extensions) {
    SIGNVOTE_RETURN_IF_ERROR(AddExtension(certificate.get(), signer, nid, value));
  }
  if (X509_sign(certificate.get(), issuer_key, EVP_sha256()) == 0) return OpensslError("signing");
  return certificate;
}

bool IsIpAddress(const std::string& text) {
  unsigned char bytes[16];
  return inet_pton(AF_INET, text.c_str(), bytes) == 1 ||
         inet_pton(AF_INET6, text.c_str(), bytes) == 1;
}

// Letters, digits, '-', '_' and '.', with an optional leading "*.": nothing that OpenSSL's extension
// syntax gives a meaning. '_' is in no name of the Internet's, and in many of a cluster's.
bool IsDnsName(const std::string& text) {
  const std::string_view name = text.starts_with("*.") ? std::string_view(text).substr(2) : text;
  if (name.empty() || name.size() > 253 || name.front() == '.' || name.back() == '.') return false;
  return std::all_of(name.begin(), name.end(), [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' ||
           c == '_' || c == '.';
  });
}

void AddUnique(std::vector<std::string>* list, const std::string& item) {
  if (std::find(list->begin(), list->end(), item) == list->end()) list->push_back(item);
}

// DNS names and IP addresses of a certificate, as text.
std::vector<std::string> NamesOf(X509* certificate) {
  std::vector<std::string> names;
  const Names list(static_cast<GENERAL_NAMES*>(
      X509_get_ext_d2i(certificate, NID_subject_alt_name, nullptr, nullptr)));
  for (int i = 0; list != nullptr && i < sk_GENERAL_NAME_num(list.get()); ++i) {
    const GENERAL_NAME* name = sk_GENERAL_NAME_value(list.get(), i);
    if (name->type == GEN_DNS) {
      names.emplace_back(reinterpret_cast<const char*>(ASN1_STRING_get0_data(name->d.dNSName)),
                         static_cast<size_t>(ASN1_STRING_length(name->d.dNSName)));
    } else if (name->type == GEN_IPADD) {
      const int family = ASN1_STRING_length(name->d.iPAddress) == 4 ? AF_INET : AF_INET6;
      char text[INET6_ADDRSTRLEN] = "";
      if (inet_ntop(family, ASN1_STRING_get0_data(name->d.iPAddress), text, sizeof(text)) !=
          nullptr) {
        names.emplace_back(text);
      }
    }
  }
  return names;
}

std::string Hex(const std::string& bytes) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string hex;
  for (const char c : bytes) {
    hex += kDigits[static_cast<unsigned char>(c) >> 4];
    hex += kDigits[static_cast<unsigned char>(c) & 15];
  }
  return hex;
}

class Maker {
 public:
  Maker(FileSystem* fs, CertsOptions options) : fs_(fs), options_(std::move(options)) {}

  absl::StatusOr<CertsReport> Run() {
    SIGNVOTE_RETURN_IF_ERROR(Check());
    SIGNVOTE_RETURN_IF_ERROR(fs_->MakeDirectories(Path(""), kFolderMode));
    SIGNVOTE_RETURN_IF_ERROR(Authority());
    SIGNVOTE_RETURN_IF_ERROR(Server());
    SIGNVOTE_RETURN_IF_ERROR(Pair(
        "admin", "admin",
        {{NID_ext_key_usage, "clientAuth"}, {NID_subject_alt_name, "URI:signvote:role:admin"}}));
    SIGNVOTE_RETURN_IF_ERROR(ReadTokens());
    for (const std::string& worker : options_.workers) SIGNVOTE_RETURN_IF_ERROR(Worker(worker));
    SIGNVOTE_RETURN_IF_ERROR(WriteTokens());
    return std::move(report_);
  }

 private:
  std::string Path(const std::string& name) const {
    return name.empty() ? options_.directory : options_.directory + "/" + name;
  }
  int64_t NotBefore() const { return options_.now_unix_seconds - kClockSkewSeconds; }
  int64_t NotAfter() const { return options_.now_unix_seconds + options_.days * kSecondsPerDay; }

  // Brings the names into the form in which certificates have them.
  absl::Status Check() {
    if (options_.directory.empty())
      return absl::InvalidArgumentError("certs: give a folder to write to");
    if (options_.days < 1 || options_.days > kDaysMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("--days ", options_.days, ": choose 1 to ", kDaysMax));
    }
    for (std::string& name : options_.server_names) {
      SIGNVOTE_ASSIGN_OR_RETURN(name, ParseHost("--server-name", name));
      if (!IsIpAddress(name) && !IsDnsName(name)) {
        return absl::InvalidArgumentError(
            absl::StrCat("--server-name '", name, "' is neither a host name nor an IP address"));
      }
    }
    for (const std::string& worker : options_.workers) {
      SIGNVOTE_RETURN_IF_ERROR(WithContext(ValidateWorkerName(worker), "--worker"));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<bool> Exists(const std::string& path) {
    const absl::StatusOr<uint64_t> size = fs_->FileSize(path);
    if (size.ok()) return true;
    if (absl::IsNotFound(size.status())) return false;
    return size.status();
  }

  absl::Status Write(const std::string& name, const std::string& data, uint32_t mode) {
    SIGNVOTE_RETURN_IF_ERROR(WriteFileAtomically(fs_, Path(name), data, mode));
    report_.created.push_back(name);
    return absl::OkStatus();
  }

  // The pair `name`.key / `name`.crt, when both are there; null when neither is.
  absl::StatusOr<std::pair<Key, Certificate>> Load(const std::string& name) {
    const std::string key_path = Path(name + ".key"), certificate_path = Path(name + ".crt");
    SIGNVOTE_ASSIGN_OR_RETURN(const bool has_key, Exists(key_path));
    SIGNVOTE_ASSIGN_OR_RETURN(const bool has_certificate, Exists(certificate_path));
    if (!has_key && !has_certificate) return std::pair<Key, Certificate>();
    if (!has_key)
      return FileProblem(
          key_path, "missing, but its certificate is there; restore it, or remove the certificate");
    SIGNVOTE_ASSIGN_OR_RETURN(const std::string key_pem, fs_->ReadFile(key_path, kFileBytesMax));
    SIGNVOTE_ASSIGN_OR_RETURN(Key key, ParseKey(key_path, key_pem));
    // A key without a certificate is what an interrupted run leaves behind: the key is written
    // first.
    if (!has_certificate) return std::pair<Key, Certificate>(std::move(key), nullptr);
    SIGNVOTE_ASSIGN_OR_RETURN(const std::string pem,
                              fs_->ReadFile(certificate_path, kFileBytesMax));
    SIGNVOTE_ASSIGN_OR_RETURN(Certificate certificate, ParseCertificate(certificate_path, pem));
    if (X509_check_private_key(certificate.get(), key.get()) != 1) {
      return FileProblem(certificate_path, absl::StrCat("does not belong to ", key_path,
                                                        "; restore the right one, or remove both"));
    }
    return std::pair<Key, Certificate>(std::move(key), std::move(certificate));
  }

  // A certificate that is kept must be good for something: nobody would look at this folder again
  // to find out.
  absl::Status RequireUsable(const std::string& name, X509* certificate) {
    const std::string path = Path(name + ".crt");
    if (X509_verify(certificate, ca_key_.get()) != 1) {
      return FileProblem(path, absl::StrCat("was not issued by ", Path("ca.crt"),
                                            "; remove it, and it is issued anew for the same key"));
    }
    if (ASN1_TIME_cmp_time_t(X509_get0_notAfter(certificate), options_.now_unix_seconds) < 0) {
      return FileProblem(path, "has expired; remove it, and it is issued anew for the same key");
    }
    return absl::OkStatus();
  }

  absl::StatusOr<Key> NewKey(const std::string& name) {
    Key key(EVP_EC_gen("P-256"));
    if (!key) return OpensslError("making a key");
    SIGNVOTE_ASSIGN_OR_RETURN(const std::string pem, KeyPem(key.get()));
    SIGNVOTE_RETURN_IF_ERROR(Write(name + ".key", pem, kPrivateMode));
    return key;
  }

  absl::Status Authority() {
    SIGNVOTE_ASSIGN_OR_RETURN(auto pair, Load("ca"));
    auto& [key, certificate] = pair;
    if (certificate) {
      report_.kept.push_back("ca.key");
      report_.kept.push_back("ca.crt");
    } else {
      if (!key) {
        SIGNVOTE_ASSIGN_OR_RETURN(key, NewKey("ca"));
      }
      Request request{.common_name = "signvote development CA",
                      .key = key.get(),
                      .not_before = NotBefore(),
                      .not_after = options_.now_unix_seconds + kAuthorityDays * kSecondsPerDay,
                      .extensions = {{NID_basic_constraints, "critical,CA:TRUE,pathlen:0"},
                                     {NID_key_usage, "critical,keyCertSign,cRLSign"},
                                     {NID_subject_key_identifier, "hash"}}};
      SIGNVOTE_ASSIGN_OR_RETURN(certificate, Issue(request, nullptr, key.get()));
      SIGNVOTE_ASSIGN_OR_RETURN(const std::string pem, CertificatePem(certificate.get()));
      SIGNVOTE_RETURN_IF_ERROR(Write("ca.crt", pem, kPublicMode));
    }
    SIGNVOTE_ASSIGN_OR_RETURN(ca_pem_, CertificatePem(certificate.get()));
    ca_key_ = std::move(key);
    ca_ = std::move(certificate);
    // A certificate that outlives its authority would fail one day without a hint why.
    if (ASN1_TIME_cmp_time_t(X509_get0_notAfter(ca_.get()), NotAfter()) < 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("--days ", options_.days, ": longer than the authority ", Path("ca.crt"),
                       " lives; choose fewer days, or start over in a new folder"));
    }
    return absl::OkStatus();
  }

  absl::Status IssueLeaf(const std::string& name, const std::string& common_name, EVP_PKEY* key,
                         std::vector<std::pair<int, std::string>> extensions) {
    Request request{.common_name = common_name,
                    .key = key,
                    .not_before = NotBefore(),
                    .not_after = NotAfter(),
                    .extensions = {{NID_basic_constraints, "critical,CA:FALSE"},
                                   {NID_key_usage, "critical,digitalSignature"},
                                   {NID_subject_key_identifier, "hash"},
                                   {NID_authority_key_identifier, "keyid:always"}}};
    for (auto& extension : extensions) request.extensions.push_back(std::move(extension));
    SIGNVOTE_ASSIGN_OR_RETURN(const Certificate certificate,
                              Issue(request, ca_.get(), ca_key_.get()));
    SIGNVOTE_ASSIGN_OR_RETURN(const std::string pem, CertificatePem(certificate.get()));
    return Write(name + ".crt", pem, kPublicMode);
  }

  // Makes `name`.key and `name`.crt unless they are there.
  absl::Status Pair(const std::string& name, const std::string& common_name,
                    std::vector<std::pair<int, std::string>> extensions) {
    SIGNVOTE_ASSIGN_OR_RETURN(auto pair, Load(name));
    auto& [key, certificate] = pair;
    if (certificate) {
      SIGNVOTE_RETURN_IF_ERROR(RequireUsable(name, certificate.get()));
      report_.kept.push_back(name + ".key");
      report_.kept.push_back(name + ".crt");
      return absl::OkStatus();
    }
    if (!key) {
      SIGNVOTE_ASSIGN_OR_RETURN(key, NewKey(name));
    }
    return IssueLeaf(name, common_name, key.get(), std::move(extensions));
  }

  absl::Status Server() {
    std::vector<std::string> names = {"localhost", "127.0.0.1", "::1"};
    SIGNVOTE_ASSIGN_OR_RETURN(auto pair, Load("server"));
    auto& [key, certificate] = pair;
    if (certificate) {
      SIGNVOTE_RETURN_IF_ERROR(RequireUsable("server", certificate.get()));
      const std::vector<std::string> known = NamesOf(certificate.get());
      for (const std::string& name : known) AddUnique(&names, name);
      const size_t before = names.size();
      for (const std::string& name : options_.server_names) AddUnique(&names, name);
      report_.kept.push_back("server.key");
      if (names.size() == before) {
        report_.kept.push_back("server.crt");
        return absl::OkStatus();
      }
    } else {
      for (const std::string& name : options_.server_names) AddUnique(&names, name);
      if (!key) {
        SIGNVOTE_ASSIGN_OR_RETURN(key, NewKey("server"));
      }
    }
    std::string san = "URI:signvote:role:server";
    for (const std::string& name : names)
      absl::StrAppend(&san, IsIpAddress(name) ? ",IP:" : ",DNS:", name);
    return IssueLeaf("server", "signvote server", key.get(),
                     {{NID_ext_key_usage, "serverAuth"}, {NID_subject_alt_name, san}});
  }

  absl::Status ReadTokens() {
    SIGNVOTE_ASSIGN_OR_RETURN(const bool exists, Exists(Path("tokens")));
    if (!exists) return absl::OkStatus();
    SIGNVOTE_ASSIGN_OR_RETURN(tokens_text_, fs_->ReadFile(Path("tokens"), kFileBytesMax));
    SIGNVOTE_ASSIGN_OR_RETURN(const std::vector<NamedToken> lines,
                              ParseNamedTokens(Path("tokens"), tokens_text_));
    for (const NamedToken& line : lines) tokens_.emplace(line.name, line.token);
    if (!tokens_text_.empty() && tokens_text_.back() != '\n') tokens_text_ += '\n';
    tokens_before_ = tokens_text_;
    return absl::OkStatus();
  }

  void AddToken(const std::string& worker, const std::string& token) {
    tokens_.emplace(worker, token);
    absl::StrAppend(&tokens_text_, worker, " ", token, "\n");
  }

  absl::Status WriteTokens() {
    if (tokens_text_ == tokens_before_ && !tokens_before_.empty()) {
      report_.kept.push_back("tokens");
      return absl::OkStatus();
    }
    return Write("tokens", tokens_text_, kPrivateMode);
  }

  absl::Status Worker(const std::string& worker) {
    const std::string folder = "workers/" + worker;
    SIGNVOTE_RETURN_IF_ERROR(fs_->MakeDirectories(Path("workers"), kFolderMode));
    SIGNVOTE_RETURN_IF_ERROR(fs_->MakeDirectories(Path(folder), kFolderMode));
    SIGNVOTE_ASSIGN_OR_RETURN(const bool has_ca, Exists(Path(folder + "/ca.crt")));
    if (!has_ca) {
      SIGNVOTE_RETURN_IF_ERROR(Write(folder + "/ca.crt", ca_pem_, kPublicMode));
    } else {
      SIGNVOTE_ASSIGN_OR_RETURN(const std::string ca,
                                fs_->ReadFile(Path(folder + "/ca.crt"), kFileBytesMax));
      if (ca != ca_pem_) {
        return FileProblem(Path(folder + "/ca.crt"), absl::StrCat("differs from ", Path("ca.crt"),
                                                                  "; remove it to get that one"));
      }
      report_.kept.push_back(folder + "/ca.crt");
    }
    SIGNVOTE_RETURN_IF_ERROR(
        Pair(folder + "/worker", worker,
             {{NID_ext_key_usage, "clientAuth"},
              {NID_subject_alt_name, absl::StrCat("URI:signvote:role:worker,DNS:", worker)}}));
    const auto known = tokens_.find(worker);
    SIGNVOTE_ASSIGN_OR_RETURN(const bool has_token, Exists(Path(folder + "/token")));
    if (has_token) {
      SIGNVOTE_ASSIGN_OR_RETURN(const std::string text,
                                fs_->ReadFile(Path(folder + "/token"), kFileBytesMax));
      SIGNVOTE_ASSIGN_OR_RETURN(const std::string own,
                                ParseOwnToken(Path(folder + "/token"), text));
      if (known != tokens_.end() && known->second != own) {
        return FileProblem(Path(folder + "/token"),
                           absl::StrCat("differs from the line of ", worker, " in ", Path("tokens"),
                                        "; remove the wrong one"));
      }
      report_.kept.push_back(folder + "/token");
      if (known == tokens_.end()) AddToken(worker, own);
      return absl::OkStatus();
    }
    std::string token;
    if (known != tokens_.end()) {
      token = known->second;
    } else {
      SIGNVOTE_ASSIGN_OR_RETURN(const std::string bytes, fs_->RandomBytes(kTokenBytes));
      token = Hex(bytes);
      AddToken(worker, token);
    }
    return Write(folder + "/token", token + "\n", kPrivateMode);
  }

  FileSystem* const fs_;
  CertsOptions options_;
  CertsReport report_;
  Key ca_key_;
  Certificate ca_;
  std::string ca_pem_;
  std::string tokens_text_, tokens_before_;    // the server's file, now and as it was
  std::map<std::string, std::string> tokens_;  // what tokens_text_ says, by worker
};

}  // namespace

absl::StatusOr<CertsReport> MakeCerts(FileSystem* fs, const CertsOptions& options) {
  return Maker(fs, options).Run();
}

}  // namespace signvote::ctl
