#include "tests/unit/proto/wire/test_certificates.h"

#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <sys/stat.h>

#include <fstream>

#include "common/check.h"

namespace signvote::testing {
namespace {

std::string ToPem(EVP_PKEY* key) {
  BIO* const bio = BIO_new(BIO_s_mem());
  SIGNVOTE_CHECK(PEM_write_bio_PrivateKey(bio, key, nullptr, nullptr, 0, nullptr, nullptr) == 1);
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  std::string out(data, static_cast<size_t>(size));
  BIO_free(bio);
  return out;
}

std::string ToPem(X509* certificate) {
  BIO* const bio = BIO_new(BIO_s_mem());
  SIGNVOTE_CHECK(PEM_write_bio_X509(bio, certificate) == 1);
  char* data = nullptr;
  const long size = BIO_get_mem_data(bio, &data);
  std::string out(data, static_cast<size_t>(size));
  BIO_free(bio);
  return out;
}

void AddExtension(X509* certificate, X509* issuer, int nid, const std::string& value) {
  X509V3_CTX context;
  X509V3_set_ctx(&context, issuer, certificate, nullptr, nullptr, 0);
  X509_EXTENSION* const extension = X509V3_EXT_conf_nid(nullptr, &context, nid, value.c_str());
  SIGNVOTE_CHECK(extension != nullptr);
  X509_add_ext(certificate, extension, -1);
  X509_EXTENSION_free(extension);
}

X509* NewCertificate(EVP_PKEY* key, const std::string& name, long serial, int64_t from,
                     int64_t to) {
  X509* const certificate = X509_new();
  X509_set_version(certificate, 2);
  ASN1_INTEGER_set(X509_get_serialNumber(certificate), serial);
  X509_gmtime_adj(X509_getm_notBefore(certificate), static_cast<long>(from));
  X509_gmtime_adj(X509_getm_notAfter(certificate), static_cast<long>(to));
  X509_set_pubkey(certificate, key);
  X509_NAME_add_entry_by_txt(X509_get_subject_name(certificate), "CN", MBSTRING_ASC,
                             reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
  return certificate;
}

}  // namespace

struct TestAuthority::Impl {
  EVP_PKEY* key = nullptr;
  X509* certificate = nullptr;
  long serial = 1;
};

TestAuthority::TestAuthority(const std::string& name) : impl_(std::make_unique<Impl>()) {
  impl_->key = EVP_EC_gen("P-256");
  impl_->certificate = NewCertificate(impl_->key, name, impl_->serial++, -24 * 3600, 24 * 3600);
  X509_set_issuer_name(impl_->certificate, X509_get_subject_name(impl_->certificate));
  AddExtension(impl_->certificate, impl_->certificate, NID_basic_constraints, "critical,CA:TRUE");
  AddExtension(impl_->certificate, impl_->certificate, NID_key_usage,
               "critical,keyCertSign,cRLSign");
  AddExtension(impl_->certificate, impl_->certificate, NID_subject_key_identifier, "hash");
  SIGNVOTE_CHECK(X509_sign(impl_->certificate, impl_->key, EVP_sha256()) > 0);
  pem_ = ToPem(impl_->certificate);
}

TestAuthority::~TestAuthority() {
  X509_free(impl_->certificate);
  EVP_PKEY_free(impl_->key);
}

TestCertificate TestAuthority::Issue(const TestCertificateRequest& request) {
  EVP_PKEY* const key = EVP_EC_gen("P-256");
  X509* const certificate =
      NewCertificate(key, request.dns_names.empty() ? "test" : request.dns_names[0],
                     impl_->serial++, request.valid_from_seconds, request.valid_to_seconds);
  X509_set_issuer_name(certificate, X509_get_subject_name(impl_->certificate));
  std::string names;
  auto add = [&](const std::string& entry) { names += (names.empty() ? "" : ",") + entry; };
  for (const std::string& name : request.dns_names) add("DNS:" + name);
  for (const std::string& uri : request.uris) add("URI:" + uri);
  if (request.loopback_addresses) add("IP:127.0.0.1,IP:::1,DNS:localhost");
  if (!names.empty()) AddExtension(certificate, impl_->certificate, NID_subject_alt_name, names);
  SIGNVOTE_CHECK(X509_sign(certificate, impl_->key, EVP_sha256()) > 0);
  TestCertificate out{ToPem(certificate), ToPem(key)};
  X509_free(certificate);
  EVP_PKEY_free(key);
  return out;
}

std::string WriteTestFile(const std::string& folder, const std::string& name,
                          const std::string& text, uint32_t mode) {
  const std::string path = folder + "/" + name;
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
  SIGNVOTE_CHECK(chmod(path.c_str(), mode) == 0);
  return path;
}

}  // namespace signvote::testing
