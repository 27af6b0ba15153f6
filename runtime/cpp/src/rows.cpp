#include "rows.hpp"

#include <algorithm>
#include <cmt/error.hpp>
#include <cstddef>

namespace cmt {
namespace {

std::size_t bytes_of_pixel(PixelFormat format) {
  return format == PixelFormat::grey || format == PixelFormat::nv12 ? 1 : 3;
}

void from_bgr(const std::uint8_t* bgr, std::size_t width, std::uint8_t* rgb) {
  for (std::size_t i = 0; i < 3 * width; i += 3) {
    rgb[i] = bgr[i + 2];
    rgb[i + 1] = bgr[i + 1];
    rgb[i + 2] = bgr[i];
  }
}

void from_grey(const std::uint8_t* grey, std::size_t width, std::uint8_t* rgb) {
  for (std::size_t i = 0; i < width; ++i) std::fill_n(rgb + 3 * i, 3, grey[i]);
}

// OpenCV's BT.601 (modules/imgproc/src/color_yuv.simd.hpp, ITUR_BT_601_*): 1.164, 1.596, 0.813,
// 0.391 and 2.018 in units of 2^-20.
constexpr int kYuvPrecision = 20;
constexpr int kYuvHalf = 1 << (kYuvPrecision - 1);
constexpr int kLuma = 1220542;
constexpr int kRedOfV = 1673527;
constexpr int kGreenOfV = -852492;
constexpr int kGreenOfU = -409993;
constexpr int kBlueOfU = 2116026;
constexpr int kBlack = 16;
constexpr int kColourless = 128;

std::uint8_t yuv_to_grey_level(int sum) {
  return static_cast<std::uint8_t>(std::clamp(sum >> kYuvPrecision, 0, 255));
}

/// `left` is the first pixel's place in its row: pairs of pixels share U and V.
void from_nv12(const std::uint8_t* luma, const std::uint8_t* chroma, std::size_t left,
               std::size_t width, std::uint8_t* rgb) {
  for (std::size_t x = left; x < left + width; ++x, rgb += 3) {
    const int y = std::max(luma[x] - kBlack, 0) * kLuma + kYuvHalf;
    const int u = chroma[x / 2 * 2] - kColourless;
    const int v = chroma[x / 2 * 2 + 1] - kColourless;
    rgb[0] = yuv_to_grey_level(y + kRedOfV * v);
    rgb[1] = yuv_to_grey_level(y + kGreenOfV * v + kGreenOfU * u);
    rgb[2] = yuv_to_grey_level(y + kBlueOfU * u);
  }
}

}  // namespace

void check_view(const ImageView& image) {
  if (image.pixels == nullptr || image.width < 1 || image.height < 1 ||
      image.stride < bytes_of_pixel(image.format) * static_cast<std::size_t>(image.width)) {
    throw InputError("an image view needs pixels, a width, a height and a stride of 3 * width, " +
                     std::string("or of the width for one byte a pixel"));
  }
  if (image.format == PixelFormat::nv12 && (image.width % 2 != 0 || image.height % 2 != 0)) {
    throw InputError("NV12 has an even width and height, not " + std::to_string(image.width) +
                     " x " + std::to_string(image.height));
  }
}

const std::uint8_t* rgb_row(const Part& part, int row, std::vector<std::uint8_t>& converted) {
  const ImageView& image = part.image;
  const auto y = static_cast<std::size_t>(part.top) + static_cast<std::size_t>(row);
  const auto left = static_cast<std::size_t>(part.left);
  const auto width = static_cast<std::size_t>(part.width);
  const std::uint8_t* source = image.pixels + y * image.stride;
  if (image.format == PixelFormat::rgb) return source + 3 * left;
  converted.resize(3 * width);
  if (image.format == PixelFormat::bgr) {
    from_bgr(source + 3 * left, width, converted.data());
  } else if (image.format == PixelFormat::grey) {
    from_grey(source + left, width, converted.data());
  } else {
    const std::uint8_t* chroma = image.chroma;
    if (chroma == nullptr) {
      chroma = image.pixels + static_cast<std::size_t>(image.height) * image.stride;
    }
    from_nv12(source, chroma + y / 2 * image.stride, left, width, converted.data());
  }
  return converted.data();
}

}  // namespace cmt
