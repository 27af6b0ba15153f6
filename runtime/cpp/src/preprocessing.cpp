#include "preprocessing.hpp"

#include <algorithm>

namespace cmt {
namespace {

constexpr std::size_t kLevels = 256;

/// The middle of a strip: resized whole, a 1 x 65,000 image would take gigabytes.
Part without_far_ends(const ImageView& image, int longest_aspect) {
  const std::int64_t longest = std::int64_t{longest_aspect} * std::min(image.width, image.height);
  const auto width = static_cast<int>(std::min<std::int64_t>(image.width, longest));
  const auto height = static_cast<int>(std::min<std::int64_t>(image.height, longest));
  return {image, (image.width - width) / 2, (image.height - height) / 2, width, height};
}

/// Half of a margin, half pixels to even.
int half(int margin) { return margin / 2 + (margin % 4 == 3 ? 1 : 0); }

}  // namespace

Preprocessor::Preprocessor(const Preprocessing& preprocessing)
    : preprocessing_(preprocessing),
      resizer_(preprocessing.interpolation),
      normalised_(3 * kLevels) {
  for (std::size_t channel = 0; channel < 3; ++channel) {
    for (std::size_t level = 0; level < kLevels; ++level) {
      const float scaled = static_cast<float>(level) / 255.0F;
      normalised_[channel * kLevels + level] =
          (scaled - preprocessing.mean[channel]) / preprocessing.std[channel];
    }
  }
}

const std::uint8_t* Preprocessor::resize(const ImageView& image) {
  check_view(image);
  const Preprocessing& p = preprocessing_;
  const Part middle = without_far_ends(image, p.longest_aspect);
  const auto scaled = [](int side, int box, int other) {
    return static_cast<int>(std::int64_t{side} * box / other);
  };
  const int width = std::max(p.box_width, scaled(middle.width, p.box_height, middle.height));
  const int height = std::max(p.box_height, scaled(middle.height, p.box_width, middle.width));
  return resizer_.resize(middle, {width, half(width - p.width), p.width},
                         {height, half(height - p.height), p.height});
}

void Preprocessor::feed(const std::uint8_t* pixels, void* input, std::size_t place) const {
  const std::size_t area = preprocessing_.area();
  if (preprocessing_.in_graph) {
    std::copy(pixels, pixels + area, static_cast<std::uint8_t*>(input) + place * area);
  } else {
    normalise(pixels, static_cast<float*>(input) + place * area);
  }
}

void Preprocessor::normalise(const std::uint8_t* pixels, float* planes) const {
  const std::size_t area = preprocessing_.area() / 3;
  const float* red = normalised_.data();
  const float* green = red + kLevels;
  const float* blue = green + kLevels;
  for (std::size_t i = 0; i < area; ++i) {
    planes[i] = red[pixels[3 * i]];
    planes[area + i] = green[pixels[3 * i + 1]];
    planes[2 * area + i] = blue[pixels[3 * i + 2]];
  }
}

}  // namespace cmt
