#include <cmt/error.hpp>
#include <cmt/image.hpp>
#include <string>

#include "decoders.hpp"
#include "files.hpp"
#include "orientation.hpp"
#include "translate.hpp"

namespace cmt {
namespace {

constexpr std::uint64_t kMostBytes = std::uint64_t{1} << 30;

Image decode(std::string_view content, const std::optional<ImageRange>& range) {
  Decoded decoded;
  if (content.substr(0, 3) == "\xFF\xD8\xFF") {
    decoded = decode_jpeg(content);
  } else if (content.substr(0, 8) == std::string_view("\x89PNG\r\n\x1A\n", 8)) {
    decoded = decode_png(content, range);
  } else {
    throw InputError("it is no JPEG or PNG file: convert it");
  }
  const Orientation orientation = orientation_of(decoded.exif, decoded.xmp);
  const std::optional<std::size_t> outside = decoded.image.outside_range;
  Image image = upright(std::move(decoded.image), orientation.value);
  image.outside_range = outside;
  image.exif_unreadable = !orientation.readable;
  return image;
}

Image read(const std::filesystem::path& path, const std::optional<ImageRange>& range) {
  const std::string content = read_file(path, kMostBytes);
  try {
    return decode(content, range);
  } catch (const InputError& error) {
    throw InputError(path.string() + ": " + error.what());
  }
}

constexpr const char* kAdvice = "get the image anew";

}  // namespace

void refuse_damaged(const std::string& damage) {
  throw InputError("it is damaged (" + damage + "): get it anew");
}

void check_size(std::uint64_t width, std::uint64_t height, std::uint64_t most) {
  constexpr std::uint64_t kMostSide = std::uint64_t{1} << 20;
  const std::string size = std::to_string(width) + " x " + std::to_string(height) + " pixels";
  if (width == 0 || height == 0 || width > kMostSide || height > kMostSide ||
      width * height > kMostPixels) {
    throw InputError("it has " + size + ": make it smaller");
  }
  if (width * height > most) {
    throw InputError("it says " + size + ", which its bytes cannot hold: get it anew");
  }
}

std::string doubts(const Image& image) {
  std::string found;
  if (const std::size_t outside = image.outside_range.value_or(0)) {
    found = std::to_string(outside) +
            " values are outside of the bundle's image range and were clipped";
  }
  if (image.exif_unreadable) {
    found += (found.empty() ? "" : "; ");
    found += "its EXIF data cannot be read: it is taken as upright";
  }
  return found;
}

Image decode_image(const std::uint8_t* data, std::size_t size,
                   const std::optional<ImageRange>& range) {
  const std::string_view content(reinterpret_cast<const char*>(data), size);
  return translated(
      "the image", [&] { return decode(content, range); }, kAdvice);
}

Image read_image(const std::filesystem::path& path, const std::optional<ImageRange>& range) {
  return translated(
      path.string(), [&] { return read(path, range); }, kAdvice);
}

}  // namespace cmt
