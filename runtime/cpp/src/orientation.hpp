#pragma once

#include <cmt/image.hpp>
#include <string>
#include <string_view>

namespace cmt {

constexpr std::string_view kExif("Exif\0\0", 6);  ///< what EXIF data begins with in a JPEG file

/// Which way up an image is, 1 to 8 as EXIF numbers them.
struct Orientation {
  int value = 1;
  bool readable = true;  ///< false where EXIF data cannot be read, which means upright
};

/// EXIF data that has an orientation decides, also where that is "upright"; XMP data is asked only
/// where there is no EXIF data or it has no orientation. As calib_data/orientation.py does.
Orientation orientation_of(std::string_view exif, std::string_view xmp);

/// EXIF data in hexadecimal after three lines, as ImageMagick stores it; else the text itself,
/// which is found unreadable where that is asked.
std::string from_raw_profile(std::string_view text);

/// The image as `orientation` says it is to be seen.
Image upright(Image image, int orientation);

}  // namespace cmt
