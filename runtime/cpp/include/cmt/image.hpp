#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <vector>

namespace cmt {

/// Somebody else's 8-bit RGB pixels: red first, rows from the top.
struct ImageView {
  const std::uint8_t* pixels = nullptr;
  int width = 0;
  int height = 0;
  std::size_t stride = 0;  ///< bytes from one row to the next, at least 3 * width
};

/// 8-bit RGB pixels, rows without gaps.
struct Image {
  std::vector<std::uint8_t> pixels;
  int width = 0;
  int height = 0;
  bool exif_unreadable = false;  ///< its EXIF data cannot be read, so it is taken as upright

  ImageView view() const {
    return {pixels.data(), width, height, 3 * static_cast<std::size_t>(width)};
  }
};

/// Decodes a JPEG or PNG file of any kind to upright RGB, as the Python side does: EXIF
/// orientation applied, alpha dropped, the upper 8 of 16 bits taken.
/// EXIF data that cannot be read means upright; where it has no orientation, XMP data decides.
/// Throws InputError for other formats, damaged files (a PNG with any wrong checksum, a JPEG
/// without its end), more than 178,956,970 pixels, more than its bytes can hold, and 16-bit values
/// whose scale nobody knows. Throws MachineError where the memory does not suffice.
Image decode_image(const std::uint8_t* data, std::size_t size);

/// The same for a regular file of at most 2^30 bytes; the message of an InputError names it.
Image read_image(const std::filesystem::path& path);

}  // namespace cmt
