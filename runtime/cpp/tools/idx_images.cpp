#include "idx_images.hpp"

#include <zlib.h>

#include <algorithm>
#include <array>
#include <cmt/error.hpp>
#include <functional>
#include <memory>
#include <numeric>

namespace cmt::tools {
namespace {

namespace fs = std::filesystem;

// As in calib_data/sources.py.
constexpr const char* kImages = "t10k-images-idx3-ubyte.gz";
constexpr const char* kLabels = "t10k-labels-idx1-ubyte.gz";
constexpr std::size_t kLargest = std::size_t{1} << 30;
constexpr std::array<const char*, 10> kClasses{"T-shirt/top", "Trouser",   "Pullover", "Dress",
                                               "Coat",        "Sandal",    "Shirt",    "Sneaker",
                                               "Bag",         "Ankle boot"};

/// A gzip file, read from its begin.
class Gzip {
 public:
  explicit Gzip(fs::path path) : path_(std::move(path)), file_(gzopen(path_.c_str(), "rb")) {
    if (file_ == nullptr || gzdirect(file_.get()) == 1) refuse("cannot be read: copy it again");
  }

  /// So many bytes, or all that are left.
  std::string read(std::size_t most) {
    std::string bytes(most, '\0');
    std::size_t have = 0;
    while (have < most) {
      const auto part = static_cast<unsigned>(std::min(most - have, std::size_t{1} << 20));
      const int got = gzread(file_.get(), bytes.data() + have, part);
      if (got < 0) refuse("cannot be read: copy it again");
      if (got == 0) break;
      have += static_cast<std::size_t>(got);
    }
    bytes.resize(have);
    return bytes;
  }

  [[noreturn]] void refuse(const std::string& problem) const {
    throw InputError(path_.string() + " " + problem);
  }

 private:
  struct Close {
    void operator()(gzFile file) const { gzclose(file); }
  };
  fs::path path_;
  std::unique_ptr<gzFile_s, Close> file_;
};

struct Idx {
  std::vector<std::size_t> shape;
  std::string values;
};

/// An IDX file of unsigned bytes with so many sides.
Idx read_idx(const fs::path& path, std::size_t rank) {
  Gzip file(path);
  const std::string begin = file.read(4);
  if (begin != std::string{'\0', '\0', '\x08', static_cast<char>(rank)}) {
    file.refuse("is no IDX file of unsigned bytes");
  }
  const std::string sides = file.read(4 * rank);
  Idx found;
  std::size_t size = 1;
  for (std::size_t i = 0; i + 4 <= sides.size() && size <= kLargest; i += 4) {
    std::size_t side = 0;
    for (std::size_t j = 0; j < 4; ++j) side = side << 8U | static_cast<std::uint8_t>(sides[i + j]);
    found.shape.push_back(side);
    size *= side;
  }
  // What a small compressed file claims to hold may be any many bytes.
  const bool sane = found.shape.size() == rank && size > 0 && size <= kLargest;
  if (sane) found.values = file.read(size + 1);
  if (!sane || found.values.size() != size) {
    file.refuse("does not hold what its header says: copy it again");
  }
  return found;
}

}  // namespace

bool holds_idx(const fs::path& folder) {
  std::error_code error;
  return fs::is_regular_file(folder / kImages, error);
}

ImageFolder list_idx(const fs::path& folder) {
  const Idx images = read_idx(folder / kImages, 3);
  const Idx labels = read_idx(folder / kLabels, 1);
  if (labels.shape.front() != images.shape.front()) {
    throw InputError((folder / kImages).string() + " and its labels do not belong together");
  }
  ImageFolder found;
  found.height = static_cast<int>(images.shape[1]);
  found.width = static_cast<int>(images.shape[2]);
  const std::size_t area = images.shape[1] * images.shape[2];
  for (std::size_t i = 0; i < images.shape.front(); ++i) {
    const auto label = static_cast<std::uint8_t>(labels.values[i]);
    if (label >= kClasses.size()) {
      throw InputError((folder / kLabels).string() + " has a label above 9");
    }
    const std::string name = std::string(kImages) + "#" + std::to_string(i);
    found.images.push_back({folder / name, kClasses[label], images.values.substr(i * area, area)});
  }
  return found;
}

}  // namespace cmt::tools
