#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <vector>

namespace cmt {

/// Somebody else's 8-bit RGB pixels: red first, rows from the top.
struct ImageView {
  const std::uint8_t* pixels = nullptr;
  int width = 0;
  int height = 0;
  std::size_t stride = 0;  ///< bytes from one row to the next, at least 3 * width
};

/// The values that become grey levels 0 and 255 in images that do not state their scale.
struct ImageRange {
  double low = 0;
  double high = 1;
};

/// 8-bit RGB pixels, rows without gaps.
struct Image {
  std::vector<std::uint8_t> pixels;
  int width = 0;
  int height = 0;
  bool exif_unreadable = false;  ///< its EXIF data cannot be read, so it is taken as upright
  /// Grey values outside of the ImageRange that it was read by, which were clipped; without a value
  /// where it was not read by one.
  std::optional<std::size_t> outside_range;

  ImageView view() const {
    return {pixels.data(), width, height, 3 * static_cast<std::size_t>(width)};
  }
};

/// Decodes a JPEG or PNG file of any kind to upright RGB, as the Python side does: EXIF
/// orientation applied, alpha dropped, the upper 8 of 16 bits taken.
/// `range`, which Classifier::image_range has, is the scale of grey PNG files of 16 bits that state
/// none (sBIT); 16-bit files with colours or alpha are then refused.
/// EXIF data that cannot be read means upright; where it has no orientation, XMP data decides.
/// Throws InputError for other formats, damaged files (a PNG with any wrong checksum, a JPEG
/// without its end), more than 178,956,970 pixels, more than its bytes can hold, and 16-bit values
/// whose scale nobody knows. Throws MachineError where the memory does not suffice.
Image decode_image(const std::uint8_t* data, std::size_t size,
                   const std::optional<ImageRange>& range = {});

/// The same for a regular file of at most 2^30 bytes; the message of an InputError names it.
Image read_image(const std::filesystem::path& path, const std::optional<ImageRange>& range = {});

}  // namespace cmt
