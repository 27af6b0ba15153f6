#include <png.h>

#include <algorithm>
#include <array>
#include <cmt/error.hpp>
#include <csetjmp>
#include <vector>

#include "decoders.hpp"
#include "png_chunks.hpp"

namespace cmt {
namespace {

/// libpng reports errors by a jump, which must not pass over a C++ object. So every function
/// here that calls the library and holds such objects keeps them outside of the jump.
struct PngDecoder {
  png_structp png = nullptr;
  png_infop info = nullptr;
  std::string_view rest;
  std::jmp_buf jump{};
  std::array<char, 200> message{};

  PngDecoder() = default;
  PngDecoder(const PngDecoder&) = delete;
  PngDecoder& operator=(const PngDecoder&) = delete;
  ~PngDecoder() { png_destroy_read_struct(&png, &info, nullptr); }
};

[[noreturn]] void on_error(png_structp png, png_const_charp message) {
  auto* decoder = static_cast<PngDecoder*>(png_get_error_ptr(png));
  const std::string_view text(message);
  std::copy_n(text.data(), std::min(text.size(), decoder->message.size() - 1),
              decoder->message.data());
  std::longjmp(decoder->jump, 1);
}

void on_warning(png_structp /*png*/, png_const_charp /*message*/) {}

void read(png_structp png, png_bytep target, std::size_t count) {
  auto* decoder = static_cast<PngDecoder*>(png_get_io_ptr(png));
  if (count > decoder->rest.size()) png_error(png, "it ends too early");
  std::copy_n(decoder->rest.data(), count, target);
  decoder->rest.remove_prefix(count);
}

bool read_header(PngDecoder& decoder) {
  decoder.png = png_create_read_struct(PNG_LIBPNG_VER_STRING, &decoder, on_error, on_warning);
  if (decoder.png == nullptr) return false;
  if (setjmp(decoder.jump) != 0) return false;
  decoder.info = png_create_info_struct(decoder.png);
  if (decoder.info == nullptr) return false;
  png_set_read_fn(decoder.png, &decoder, read);
  // Pillow takes any size that its limit on pixels allows.
  png_set_user_limits(decoder.png, PNG_UINT_31_MAX, PNG_UINT_31_MAX);
  png_read_info(decoder.png, decoder.info);
  return true;
}

/// To the bytes of RGB, of 16 bits the upper byte, not rounded.
void to_rgb(PngDecoder& decoder) {
  png_structp png = decoder.png;
  png_set_strip_16(png);
  png_set_palette_to_rgb(png);
  if (png_get_color_type(png, decoder.info) == PNG_COLOR_TYPE_GRAY) {
    png_set_expand_gray_1_2_4_to_8(png);
  }
  png_set_gray_to_rgb(png);
  png_set_strip_alpha(png);
}

/// (height, width, 3) in 8 bits, or, where `deep`, (height, width) in 16.
bool read_pixels(PngDecoder& decoder, std::uint8_t* pixels, std::size_t stride, std::size_t height,
                 bool deep) {
  png_structp png = decoder.png;
  if (setjmp(decoder.jump) != 0) return false;
  if (deep) {
    png_set_swap(png);
  } else {
    to_rgb(decoder);
  }
  const int passes = png_set_interlace_handling(png);
  png_read_update_info(png, decoder.info);
  if (png_get_rowbytes(png, decoder.info) != stride) png_error(png, "it has an odd format");
  for (int pass = 0; pass < passes; ++pass) {
    for (std::size_t y = 0; y < height; ++y) png_read_row(png, pixels + y * stride, nullptr);
  }
  png_read_end(png, decoder.info);
  return true;
}

/// Refuses upper bytes of 16 bits that are all small: values of 10, 12 or 14 bits, far oftener
/// than the dark. See calib_data/depth.py.
void check_bright(const std::vector<std::uint8_t>& upper) {
  constexpr std::uint8_t kDarkest = 64;
  if (std::all_of(upper.begin(), upper.end(),
                  [](std::uint8_t value) { return value < kDarkest; })) {
    throw InputError(
        "its brightest value is below 16384 of 65,536, and it does not state another scale: export "
        "the bundle with --image-range, or write values that fill 16 bits, or 8");
  }
}

/// (height, width) grey values of 16 bits to 8 bits three times, by how many bits are significant:
/// the upper ones, or, as many programs write them, the lower ones. Then no value has a bit above,
/// and some have one below.
void by_significant_bits(const std::vector<std::uint16_t>& values, int bits, Image& image) {
  const int unused = 16 - bits;
  const auto fits = [&](std::uint16_t value) { return value >> bits == 0; };
  const auto has_lower = [&](std::uint16_t value) { return (value & ((1 << unused) - 1)) != 0; };
  const bool lower = std::all_of(values.begin(), values.end(), fits) &&
                     std::any_of(values.begin(), values.end(), has_lower);
  const int shift = lower ? bits - 8 : 8;
  std::uint8_t* target = image.pixels.data();
  for (const std::uint16_t value : values) {
    target = std::fill_n(target, 3, static_cast<std::uint8_t>(value >> shift));
  }
}

/// The same by the range that their owner states, as calib_data/depth.py does.
void by_range(const std::vector<std::uint16_t>& values, const ImageRange& range, Image& image) {
  std::uint8_t* target = image.pixels.data();
  std::size_t outside = 0;
  for (const std::uint16_t value : values) {
    const double number = value;
    if (number < range.low || number > range.high) ++outside;
    const double share = std::clamp((number - range.low) / (range.high - range.low), 0.0, 1.0);
    target = std::fill_n(target, 3, static_cast<std::uint8_t>(share * 255.999));
  }
  image.outside_range = outside;
}

}  // namespace

Decoded decode_png(std::string_view content, const std::optional<ImageRange>& range) {
  Png file = read_png(content);
  if (range && file.deep && !file.grey) {
    throw InputError(
        "its colours have 16 bits, of which the upper 8 alone are read: the bundle's image range "
        "is for grey images; write 8 bits");
  }
  PngDecoder decoder;
  decoder.rest = file.pixels;
  const auto require = [&](bool good) {
    if (good) return;
    refuse_damaged(decoder.message.data());
  };
  require(read_header(decoder));
  Decoded decoded{{}, std::move(file.exif), std::move(file.xmp)};
  Image& image = decoded.image;
  image.width = static_cast<int>(file.width);
  image.height = static_cast<int>(file.height);
  const std::size_t area = std::size_t{file.width} * file.height;
  image.pixels.resize(3 * area);
  const int bits = file.significant_bits.value_or(16);
  const bool stated = bits >= 8 && bits < 16;
  if (file.deep && file.grey && (stated || range)) {
    std::vector<std::uint16_t> values(area);
    auto* bytes = reinterpret_cast<std::uint8_t*>(values.data());
    require(read_pixels(decoder, bytes, 2 * std::size_t{file.width}, file.height, true));
    if (stated) {
      by_significant_bits(values, bits, image);
    } else {
      by_range(values, *range, image);
    }
  } else {
    require(
        read_pixels(decoder, image.pixels.data(), 3 * std::size_t{file.width}, file.height, false));
    if (file.deep) check_bright(image.pixels);
  }
  return decoded;
}

}  // namespace cmt
