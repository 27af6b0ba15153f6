#include <cmt/error.hpp>
#include <cmt/image.hpp>
#include <string>

#include "decoders.hpp"
#include "files.hpp"
#include "orientation.hpp"

namespace cmt {

void check_pixel_count(std::uint64_t width, std::uint64_t height) {
  constexpr std::uint64_t kMostPixels = 178956970;  // Pillow's limit too
  if (width == 0 || height == 0 || width > kMostPixels || height > kMostPixels ||
      width * height > kMostPixels) {
    throw InputError("it has " + std::to_string(width) + " x " + std::to_string(height) +
                     " pixels: make it smaller");
  }
}

Image decode_image(const std::uint8_t* data, std::size_t size) {
  const std::string_view content(reinterpret_cast<const char*>(data), size);
  Decoded decoded;
  if (content.substr(0, 3) == "\xFF\xD8\xFF") {
    decoded = decode_jpeg(content);
  } else if (content.substr(0, 8) == std::string_view("\x89PNG\r\n\x1A\n", 8)) {
    decoded = decode_png(content);
  } else {
    throw InputError("it is no JPEG or PNG file: convert it");
  }
  int orientation = exif_orientation(decoded.exif);
  if (orientation == 1) orientation = xmp_orientation(decoded.xmp);
  return upright(std::move(decoded.image), orientation);
}

Image read_image(const std::filesystem::path& path) {
  const std::string content = read_file(path);
  try {
    return decode_image(reinterpret_cast<const std::uint8_t*>(content.data()), content.size());
  } catch (const InputError& error) {
    throw InputError(path.string() + ": " + error.what());
  }
}

}  // namespace cmt
