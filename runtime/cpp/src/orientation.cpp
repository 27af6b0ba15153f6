#include "orientation.hpp"

#include <algorithm>
#include <cmt/error.hpp>
#include <cstdint>
#include <optional>
#include <utility>

namespace cmt {
namespace {

constexpr std::string_view kExif("Exif\0\0", 6);
constexpr std::uint32_t kOrientation = 0x0112;
constexpr std::uint32_t kShort = 3;
constexpr std::uint32_t kLong = 4;
constexpr int kUpright = 1;

/// Numbers of a TIFF structure; reading beyond its end gives nothing.
class Tiff {
 public:
  Tiff(std::string_view data, bool big_endian) : data_(data), big_endian_(big_endian) {}

  std::optional<std::uint32_t> number(std::size_t offset, std::size_t bytes) const {
    if (offset > data_.size() || bytes > data_.size() - offset) return std::nullopt;
    std::uint32_t value = 0;
    for (std::size_t i = 0; i < bytes; ++i) {
      const std::size_t place = big_endian_ ? i : bytes - 1 - i;
      value = value << 8 | static_cast<std::uint8_t>(data_[offset + place]);
    }
    return value;
  }

 private:
  std::string_view data_;
  bool big_endian_;
};

int known(std::uint32_t orientation) {
  return orientation <= 8 ? std::max(static_cast<int>(orientation), kUpright) : kUpright;
}

}  // namespace

int exif_orientation(std::string_view data) {
  for (int i = 0; i < 2 && data.substr(0, kExif.size()) == kExif; ++i) {
    data.remove_prefix(kExif.size());
  }
  if (data.empty()) return kUpright;
  const std::string_view order = data.substr(0, 4);
  const bool big_endian = order == std::string_view("MM\0*", 4);
  if (!big_endian && order != std::string_view("II*\0", 4)) {
    throw InputError("its EXIF data is damaged: save it again");
  }
  const Tiff tiff(data, big_endian);
  const auto begin = tiff.number(4, 4);
  if (!begin) throw InputError("its EXIF data is damaged: save it again");
  const std::uint32_t entries = tiff.number(*begin, 2).value_or(0);
  for (std::uint32_t i = 0; i < entries; ++i) {
    const std::size_t entry = std::size_t{*begin} + 2 + 12 * std::size_t{i};
    const auto tag = tiff.number(entry, 2);
    if (!tag) break;
    if (*tag != kOrientation || tiff.number(entry + 4, 4) != 1U) continue;
    const auto type = tiff.number(entry + 2, 2);
    if (type == kShort) return known(tiff.number(entry + 8, 2).value_or(kUpright));
    if (type == kLong) return known(tiff.number(entry + 8, 4).value_or(kUpright));
  }
  return kUpright;
}

int xmp_orientation(std::string_view data) {
  constexpr std::string_view kName = "tiff:Orientation";
  for (std::size_t at = data.find(kName); at != std::string_view::npos;
       at = data.find(kName, at + 1)) {
    std::string_view rest = data.substr(at + kName.size());
    if (rest.substr(0, 2) == "=\"") {
      rest.remove_prefix(2);
    } else if (rest.substr(0, 1) == ">") {
      rest.remove_prefix(1);
    } else {
      continue;
    }
    if (!rest.empty() && rest[0] >= '0' && rest[0] <= '9') {
      return known(static_cast<std::uint32_t>(rest[0] - '0'));
    }
  }
  return kUpright;
}

Image upright(Image image, int orientation) {
  if (orientation == kUpright) return image;
  const bool turned = orientation >= 5;
  Image result;
  result.width = turned ? image.height : image.width;
  result.height = turned ? image.width : image.height;
  result.pixels.resize(image.pixels.size());
  const auto stride = 3 * static_cast<std::ptrdiff_t>(image.width);
  // Where the result's first pixel is in the image, and the way to the next column and row.
  const bool from_right =
      orientation == 2 || orientation == 3 || orientation == 7 || orientation == 8;
  const bool from_bottom =
      orientation == 3 || orientation == 4 || orientation == 6 || orientation == 7;
  const std::ptrdiff_t across = from_right ? -3 : 3;
  const std::ptrdiff_t down = from_bottom ? -stride : stride;
  const std::ptrdiff_t next_column = turned ? down : across;
  const std::ptrdiff_t next_row = turned ? across : down;
  const std::uint8_t* row = image.pixels.data() +
                            (from_right ? 3 * (std::ptrdiff_t{image.width} - 1) : 0) +
                            (from_bottom ? stride * (std::ptrdiff_t{image.height} - 1) : 0);
  std::uint8_t* target = result.pixels.data();
  for (int y = 0; y < result.height; ++y) {
    for (int x = 0; x < result.width; ++x, target += 3) {
      std::copy_n(row + y * next_row + x * next_column, 3, target);
    }
  }
  return result;
}

}  // namespace cmt
