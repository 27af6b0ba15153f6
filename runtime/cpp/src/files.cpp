#include "files.hpp"

#include <openssl/evp.h>

#include <array>
#include <cmt/error.hpp>
#include <fstream>
#include <iterator>
#include <memory>

namespace cmt {
namespace {

std::ifstream open(const std::filesystem::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file || std::filesystem::is_directory(path)) {
    throw InputError("cannot read " + path.string());
  }
  return file;
}

class Digest {
 public:
  Digest() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
    check(context_ != nullptr && EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) == 1);
  }

  void add(const char* data, std::size_t size) {
    check(EVP_DigestUpdate(context_.get(), data, size) == 1);
  }

  std::string hex() {
    std::array<unsigned char, EVP_MAX_MD_SIZE> bytes{};
    unsigned int size = 0;
    check(EVP_DigestFinal_ex(context_.get(), bytes.data(), &size) == 1);
    std::string text;
    for (unsigned int i = 0; i < size; ++i) {
      text += "0123456789abcdef"[bytes[i] >> 4];
      text += "0123456789abcdef"[bytes[i] & 15];
    }
    return text;
  }

 private:
  static void check(bool good) {
    if (!good) throw std::runtime_error("OpenSSL cannot compute a sha256");
  }

  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

}  // namespace

std::string read_file(const std::filesystem::path& path) {
  std::ifstream file = open(path);
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string sha256(std::string_view content) {
  Digest digest;
  digest.add(content.data(), content.size());
  return digest.hex();
}

std::string sha256_file(const std::filesystem::path& path) {
  std::ifstream file = open(path);
  Digest digest;
  std::string piece(std::size_t{1} << 20, '\0');
  while (file.read(piece.data(), static_cast<std::streamsize>(piece.size())) || file.gcount() > 0) {
    digest.add(piece.data(), static_cast<std::size_t>(file.gcount()));
  }
  if (file.bad()) throw InputError("cannot read " + path.string());
  return digest.hex();
}

}  // namespace cmt
