#pragma once

#include <string>
#include <string_view>

namespace cmt {

/// A JPEG file taken apart; see calib_data/jpeg_segments.py, which reads and refuses the same.
struct Jpeg {
  std::string pixels;  ///< a JPEG file of what makes the pixels alone
  std::string exif;
  std::string xmp;
};

/// Throws InputError for a file that is not whole, or of a rare kind.
Jpeg read_jpeg(std::string_view content);

}  // namespace cmt
