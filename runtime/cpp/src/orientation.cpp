#include "orientation.hpp"

#include <algorithm>
#include <cstdint>
#include <optional>
#include <utility>

namespace cmt {
namespace {

constexpr std::uint32_t kOrientation = 0x0112;
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

/// An entry of the orientation: where its value is, and how many there are of which type.
struct Entry {
  std::uint32_t type;
  std::uint32_t count;
  std::size_t place;
};

/// The last entry of the orientation, as in Pillow, and whether the list is all there.
std::pair<std::optional<Entry>, bool> last_entry(const Tiff& tiff) {
  std::optional<Entry> last;
  const auto begin = tiff.number(4, 4);
  const auto count = begin ? tiff.number(*begin, 2) : std::nullopt;
  if (!count) return {last, false};
  for (std::uint32_t i = 0; i < *count; ++i) {
    const std::size_t place = std::size_t{*begin} + 2 + 12 * std::size_t{i};
    const auto tag = tiff.number(place, 2);
    const auto type = tiff.number(place + 2, 2);
    const auto number = tiff.number(place + 4, 4);
    if (!tag || !type || !number) return {last, false};
    if (*tag == kOrientation) last = Entry{*type, *number, place + 8};
  }
  return {last, true};
}

/// Bytes of a type of whole numbers; 0 of another. Bytes are none, as in Pillow, but signed ones.
std::size_t size_of(std::uint32_t type) {
  switch (type) {
    case 6:  // SBYTE
      return 1;
    case 3:  // SHORT
    case 8:  // SSHORT
      return 2;
    case 4:   // LONG
    case 9:   // SLONG
    case 13:  // IFD
      return 4;
    default:
      return 0;
  }
}

/// Negative ones are large here.
int known(std::uint32_t orientation) {
  return orientation >= 1 && orientation <= 8 ? static_cast<int>(orientation) : kUpright;
}

/// Nothing where EXIF data has no orientation.
std::optional<Orientation> exif_orientation(std::string_view data) {
  constexpr Orientation kUnreadable{kUpright, false};
  for (int i = 0; i < 2 && data.substr(0, kExif.size()) == kExif; ++i) {
    data.remove_prefix(kExif.size());
  }
  if (data.empty()) return std::nullopt;
  const std::string_view order = data.substr(0, 4);
  const bool big_endian = order == std::string_view("MM\0*", 4);
  if (!big_endian && order != std::string_view("II*\0", 4)) return kUnreadable;
  const Tiff tiff(data, big_endian);
  const auto [entry, whole] = last_entry(tiff);
  if (!entry) return whole ? std::nullopt : std::optional(kUnreadable);
  const std::size_t size = size_of(entry->type);
  if (size == 0 || entry->count != 1) return kUnreadable;
  const auto value = tiff.number(entry->place, size);
  return value ? Orientation{known(*value), true} : kUnreadable;
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

int hex_digit(char digit) {
  if (digit >= '0' && digit <= '9') return digit - '0';
  const char lower = static_cast<char>(digit | 0x20);
  return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

}  // namespace

Orientation orientation_of(std::string_view exif, std::string_view xmp) {
  const auto stated = exif_orientation(exif);
  return stated ? *stated : Orientation{xmp_orientation(xmp), true};
}

std::string from_raw_profile(std::string_view text) {
  std::string_view digits = text;
  for (int line = 0; line < 3; ++line) {
    const std::size_t end = digits.find('\n');
    if (end == std::string_view::npos) return std::string(text);
    digits.remove_prefix(end + 1);
  }
  std::string bytes;
  int upper = -1;
  for (const char digit : digits) {
    if (digit == ' ' || (digit >= '\t' && digit <= '\r')) continue;
    const int value = hex_digit(digit);
    if (value < 0) return std::string(text);
    if (upper >= 0) bytes += static_cast<char>(upper << 4 | value);
    upper = upper < 0 ? value : -1;
  }
  return upper < 0 ? bytes : std::string(text);
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
