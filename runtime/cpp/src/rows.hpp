#pragma once

#include <cmt/image.hpp>
#include <cstdint>
#include <vector>

namespace cmt {

/// A rectangle of somebody's image, in pixels.
struct Part {
  ImageView image;
  int left = 0;
  int top = 0;
  int width = 0;
  int height = 0;
};

/// Throws InputError unless a view can be read.
void check_view(const ImageView& image);

/// A row of a part as RGB: where it lies, or in `converted`, which is made large enough.
const std::uint8_t* rgb_row(const Part& part, int row, std::vector<std::uint8_t>& converted);

}  // namespace cmt
