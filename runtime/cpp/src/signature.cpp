#include "signature.hpp"

#include <openssl/evp.h>
#include <openssl/pem.h>

#include <array>
#include <charconv>
#include <cmath>
#include <cmt/error.hpp>
#include <memory>
#include <optional>
#include <vector>

#include "files.hpp"
#include "strict_json.hpp"

namespace cmt {
namespace {

using Json = nlohmann::json;

/// As Python's repr: the fewest digits that tell the number, an exponent from 1e16 on and below
/// 1e-4.
std::string number_text(double number) {
  const double size = std::abs(number);
  const bool fixed = size == 0 || (size >= 1e-4 && size < 1e16);
  std::array<char, 32> text{};
  char* const end = std::to_chars(text.data(), text.data() + text.size(), number,
                                  fixed ? std::chars_format::fixed : std::chars_format::scientific)
                        .ptr;
  std::string digits(text.data(), end);
  if (fixed && digits.find('.') == std::string::npos) digits += ".0";
  return digits;
}

void write(const Json& value, std::string& out) {
  if (value.is_object()) {
    char separator = '{';
    for (const auto& [name, item] : value.items()) {
      out += std::exchange(separator, ',');
      out += Json(name).dump(-1, ' ', true) + ":";
      write(item, out);
    }
    out += separator == '{' ? "{}" : "}";
  } else if (value.is_array()) {
    char separator = '[';
    for (const Json& item : value) {
      out += std::exchange(separator, ',');
      write(item, out);
    }
    out += separator == '[' ? "[]" : "]";
  } else {
    out += value.is_number_float() ? number_text(value.get<double>()) : value.dump(-1, ' ', true);
  }
}

using Key = std::unique_ptr<EVP_PKEY, decltype(&EVP_PKEY_free)>;

Key read_public_key(const std::filesystem::path& path) {
  constexpr std::uint64_t kLongestKey = 10000;
  const std::string text = read_file(path, kLongestKey);
  const std::unique_ptr<BIO, decltype(&BIO_free)> source(
      BIO_new_mem_buf(text.data(), static_cast<int>(text.size())), BIO_free);
  // OpenSSL would ask at the terminal for the password of an encrypted key.
  const auto no_password = [](char*, int, int, void*) { return -1; };
  Key key(PEM_read_bio_PUBKEY(source.get(), nullptr, no_password, nullptr), EVP_PKEY_free);
  if (key == nullptr || EVP_PKEY_base_id(key.get()) != EVP_PKEY_ED25519) {
    throw InputError(path.string() + " is no public Ed25519 key in PEM: make one with openssl " +
                     "genpkey -algorithm ed25519, and openssl pkey -pubout of that");
  }
  return key;
}

constexpr std::size_t kSignatureBytes = 64;

/// The bytes of a signature in base64, blanks around it; nothing where it is something else.
std::optional<std::vector<unsigned char>> decode(std::string_view text) {
  constexpr std::string_view kBlanks = " \t\r\n\v\f";
  const std::size_t begin = std::min(text.find_first_not_of(kBlanks), text.size());
  text = text.substr(begin, text.find_last_not_of(kBlanks) + 1 - begin);
  constexpr std::size_t kCharacters = 88;  // the last two of them are padding
  if (text.size() != kCharacters || text.substr(kCharacters - 2) != "==") return std::nullopt;
  std::vector<unsigned char> bytes(kCharacters / 4 * 3);
  const auto* characters = reinterpret_cast<const unsigned char*>(text.data());
  if (EVP_DecodeBlock(bytes.data(), characters, kCharacters) < 0) return std::nullopt;
  bytes.resize(kSignatureBytes);
  return bytes;
}

bool is_signed_by(EVP_PKEY* key, const std::vector<unsigned char>& signature,
                  const std::string& content) {
  const std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context(EVP_MD_CTX_new(),
                                                                        EVP_MD_CTX_free);
  return context != nullptr &&
         EVP_DigestVerifyInit(context.get(), nullptr, nullptr, nullptr, key) == 1 &&
         EVP_DigestVerify(context.get(), signature.data(), signature.size(),
                          reinterpret_cast<const unsigned char*>(content.data()),
                          content.size()) == 1;
}

bool says_the_same(const std::string& content, const std::string& manifest) {
  try {
    return signed_bytes(content) == manifest;
  } catch (const InputError&) {
    return false;
  }
}

}  // namespace

std::string signed_bytes(std::string_view manifest) {
  Json content = parse_strictly(manifest);
  if (!content.is_object()) damaged("it is no object");
  content.erase("reports");
  std::string out;
  write(content, out);
  return out;
}

void verify_signature(std::string_view manifest, const Voucher& voucher,
                      const std::filesystem::path& key, const std::filesystem::path& bundle) {
  const Key public_key = read_public_key(key);
  const auto signature = decode(voucher.signature);
  const std::string present = signed_bytes(manifest);
  const std::string& content = voucher.content ? *voucher.content : present;
  if (!signature || !is_signed_by(public_key.get(), *signature, content) ||
      !says_the_same(content, present)) {
    throw InputError(bundle.string() + " is not signed with the key of " + key.string() +
                     ": get it from whoever holds the key");
  }
}

}  // namespace cmt
