#pragma once

#include <array>
#include <cmt/image.hpp>
#include <cstddef>
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
  Interpolation interpolation = Interpolation::bicubic;
  std::array<float, 3> mean{};  ///< per channel (red, green, blue), for values in [0, 1]
  std::array<float, 3> std{};
  bool in_graph = false;  ///< the file normalises and lays out by itself

  std::size_t area() const {  ///< values in an image
    return 3 * static_cast<std::size_t>(height) * static_cast<std::size_t>(width);
  }
};

/// Prepares images as calib_data/preprocessing.py does, bit for bit.
class Preprocessor {
 public:
  explicit Preprocessor(const Preprocessing& preprocessing);

  /// (height, width, 3), valid until the next call. Throws InputError for an unusable view.
  const std::uint8_t* resize(const ImageView& image);

  /// Puts (height, width, 3) at its place in the input of a file that takes several: normalised
  /// float32 (3, height, width), or as it is where the file does the rest.
  void feed(const std::uint8_t* pixels, void* input, std::size_t place) const;

 private:
  void normalise(const std::uint8_t* pixels, float* planes) const;

  Preprocessing preprocessing_;
  Resizer resizer_;
  std::vector<float> normalised_;  ///< of every grey level, per channel
};

}  // namespace cmt
