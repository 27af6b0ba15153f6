#pragma once

#include <cmt/image.hpp>
#include <string_view>

namespace cmt {

/// The orientation, 1 to 8, in EXIF data (with or without "Exif\0\0" before it); 1 where it says
/// nothing. Throws InputError for data that is no TIFF structure.
int exif_orientation(std::string_view data);

/// The orientation that XMP data states, else 1.
int xmp_orientation(std::string_view data);

/// The image as `orientation` says it is to be seen.
Image upright(Image image, int orientation);

}  // namespace cmt
