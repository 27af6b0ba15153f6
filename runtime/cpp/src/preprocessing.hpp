#pragma once

#include <array>
#include <cmt/image.hpp>
#include <cstdint>
#include <vector>

#include "resize.hpp"

namespace cmt {

/// How images are prepared for one network; sizes in pixels.
struct Preprocessing {
  int height = 0;  ///< of the network's input, cut from the middle
  int width = 0;
  int box_height = 0;  ///< the image, its aspect ratio kept, is resized to cover this
  int box_width = 0;
  int longest_aspect = 1;
  std::array<float, 3> mean{};  ///< per channel (red, green, blue), for values in [0, 1]
  std::array<float, 3> std{};
};

/// Prepares images as calib_data/preprocessing.py does, bit for bit.
class Preprocessor {
 public:
  explicit Preprocessor(const Preprocessing& preprocessing);

  /// (height, width, 3), valid until the next call. Throws InputError for an unusable view.
  const std::uint8_t* resize(const ImageView& image);

  /// (height, width, 3) -> (3, height, width), normalised.
  void normalise(const std::uint8_t* pixels, float* planes) const;

 private:
  Preprocessing preprocessing_;
  Resizer resizer_;
  std::vector<float> normalised_;  ///< of every grey level, per channel
};

}  // namespace cmt
