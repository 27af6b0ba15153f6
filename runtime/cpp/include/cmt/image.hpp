#pragma once

#include <cmt/version.h>

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <optional>
#include <string>
#include <vector>

namespace cmt {

/// What the bytes of an image are.
enum class PixelFormat {
  rgb,   ///< three bytes a pixel, red first
  bgr,   ///< the same, blue first, as OpenCV has it
  grey,  ///< one byte a pixel, which stands for all three colours
  /// As cameras and video decoders have it: a plane of luma, then one of U and V for every two by
  /// two pixels. Read as OpenCV's COLOR_YUV2RGB_NV12 does, to the bit: BT.601 with luma from 16 to
  /// 235, in 20 bits after the point, U and V of a pixel those of its two by two.
  nv12,
};

/// Somebody else's 8-bit pixels, rows from the top.
struct ImageView {
  const std::uint8_t* pixels = nullptr;
  int width = 0;
  int height = 0;
  /// Bytes from one row to the next, of both planes in NV12: at least 3 * width, or the width for
  /// one byte a pixel.
  std::size_t stride = 0;
  PixelFormat format = PixelFormat::rgb;
  /// NV12's second plane; null where it follows the first one, stride * height bytes on.
  const std::uint8_t* chroma = nullptr;
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

/// What of an image was not read as its owner may have meant it, in words: values that were
/// clipped, EXIF data that cannot be read. Empty where there is nothing of the kind.
CMT_API std::string doubts(const Image& image);

/// Decodes a JPEG or PNG file of any kind to upright RGB, as the Python side does: EXIF
/// orientation applied, alpha dropped, the upper 8 of 16 bits taken.
/// `range`, which Classifier::image_range has, is the scale of grey PNG files of 16 bits that state
/// none (sBIT); 16-bit files with colours or alpha are then refused.
/// EXIF data that cannot be read means upright; where it has no orientation, XMP data decides.
/// Throws InputError for other formats, damaged files (a PNG with any wrong checksum, a JPEG
/// without its end), more than 178,956,970 pixels, more than its bytes can hold, and 16-bit values
/// whose scale nobody knows. Throws MachineError where the memory does not suffice.
CMT_API Image decode_image(const std::uint8_t* data, std::size_t size,
                           const std::optional<ImageRange>& range = {});

/// The same for a regular file of at most 2^30 bytes; the message of an InputError names it.
CMT_API Image read_image(const std::filesystem::path& path,
                         const std::optional<ImageRange>& range = {});

}  // namespace cmt
