#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>

namespace cmt {

/// A PNG file taken apart; see calib_data/png_chunks.py, which reads and refuses the same.
struct Png {
  std::string pixels;  ///< a PNG file of what makes the pixels alone
  std::uint32_t width = 0;
  std::uint32_t height = 0;
  bool deep = false;                    ///< 16 bits for each value
  bool grey = false;                    ///< without colours and alpha
  std::optional<int> significant_bits;  ///< what sBIT says of the first channel
  std::string exif;
  std::string xmp;
};

/// Throws InputError for a file that is not whole.
Png read_png(std::string_view content);

}  // namespace cmt
