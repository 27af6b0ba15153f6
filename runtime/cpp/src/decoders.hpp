#pragma once

#include <cmt/image.hpp>
#include <cstdint>
#include <string>
#include <string_view>

namespace cmt {

/// An image as it is stored, and what the file says about its orientation.
struct Decoded {
  Image image;
  std::string exif;
  std::string xmp;
};

Decoded decode_jpeg(std::string_view content);
Decoded decode_png(std::string_view content);

/// Throws InputError for sizes that nobody can have meant.
void check_pixel_count(std::uint64_t width, std::uint64_t height);

}  // namespace cmt
