#include "files.hpp"

#include <fcntl.h>
#include <openssl/evp.h>
#include <sys/stat.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cmt/error.hpp>
#include <memory>
#include <system_error>

namespace cmt {
namespace {

[[noreturn]] void refuse(const std::filesystem::path& path, const std::string& problem) {
  throw InputError("cannot read " + path.string() + " (" + problem + ")");
}

[[noreturn]] void refuse_by_errno(const std::filesystem::path& path) {
  refuse(path, std::generic_category().message(errno));
}

/// A regular file, open for reading.
class File {
 public:
  explicit File(const std::filesystem::path& path)
      // Opening a pipe would wait for its writer otherwise.
      : path_(path), descriptor_(::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK)) {
    if (descriptor_ < 0) refuse_by_errno(path);
    struct stat status {};
    const bool regular = ::fstat(descriptor_, &status) == 0 && S_ISREG(status.st_mode);
    size_ = static_cast<std::uint64_t>(status.st_size);
    if (regular) return;
    ::close(descriptor_);
    refuse(path, "it is no file");
  }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  ~File() { ::close(descriptor_); }

  /// Calls `take` with each piece of the content, which may have `most` bytes.
  template <typename Take>
  void read(std::uint64_t most, const Take& take) const {
    check(size_, most);  // before what is far too large is read up to there
    std::string piece(std::size_t{1} << 20, '\0');
    std::uint64_t total = 0;
    while (true) {
      const ssize_t size = ::read(descriptor_, piece.data(), piece.size());
      if (size == 0) return;
      if (size < 0 && errno == EINTR) continue;
      if (size < 0) refuse_by_errno(path_);
      total += static_cast<std::uint64_t>(size);
      check(total, most);
      take(std::string_view(piece).substr(0, static_cast<std::size_t>(size)));
    }
  }

 private:
  void check(std::uint64_t size, std::uint64_t most) const {
    if (size > most) refuse(path_, "it has more than " + std::to_string(most) + " bytes");
  }

  const std::filesystem::path& path_;
  int descriptor_;
  std::uint64_t size_ = 0;
};

class Digest {
 public:
  Digest() : context_(EVP_MD_CTX_new(), EVP_MD_CTX_free) {
    check(context_ != nullptr && EVP_DigestInit_ex(context_.get(), EVP_sha256(), nullptr) == 1);
  }

  void add(std::string_view content) {
    check(EVP_DigestUpdate(context_.get(), content.data(), content.size()) == 1);
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
    if (!good) throw MachineError("OpenSSL cannot compute a sha256");
  }

  std::unique_ptr<EVP_MD_CTX, decltype(&EVP_MD_CTX_free)> context_;
};

}  // namespace

std::string read_file(const std::filesystem::path& path, std::uint64_t most) {
  std::string content;
  File(path).read(most, [&](std::string_view piece) { content += piece; });
  return content;
}

std::string sha256(std::string_view content) {
  Digest digest;
  digest.add(content);
  return digest.hex();
}

std::string sha256_file(const std::filesystem::path& path, std::uint64_t most) {
  Digest digest;
  File(path).read(most, [&](std::string_view piece) { digest.add(piece); });
  return digest.hex();
}

}  // namespace cmt
