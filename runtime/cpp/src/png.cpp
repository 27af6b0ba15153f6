#include <png.h>

#include <algorithm>
#include <array>
#include <cmt/error.hpp>
#include <csetjmp>
#include <memory>

#include "decoders.hpp"

namespace cmt {
namespace {

/// libpng reports errors by a jump, which must not pass over a C++ object. So every function
/// here that calls the library and holds such objects keeps them outside of the jump.
struct Decoder {
  png_structp png = nullptr;
  png_infop info = nullptr;
  std::string_view rest;
  std::jmp_buf jump{};
  std::array<char, 200> message{};

  Decoder() = default;
  Decoder(const Decoder&) = delete;
  Decoder& operator=(const Decoder&) = delete;
  ~Decoder() { png_destroy_read_struct(&png, &info, nullptr); }
};

[[noreturn]] void on_error(png_structp png, png_const_charp message) {
  auto* decoder = static_cast<Decoder*>(png_get_error_ptr(png));
  const std::string_view text(message);
  std::copy_n(text.data(), std::min(text.size(), decoder->message.size() - 1),
              decoder->message.data());
  std::longjmp(decoder->jump, 1);
}

void on_warning(png_structp /*png*/, png_const_charp /*message*/) {}

void read(png_structp png, png_bytep target, std::size_t count) {
  auto* decoder = static_cast<Decoder*>(png_get_io_ptr(png));
  if (count > decoder->rest.size()) png_error(png, "it ends too early");
  std::copy_n(decoder->rest.data(), count, target);
  decoder->rest.remove_prefix(count);
}

bool read_header(Decoder& decoder) {
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

/// (height, width, 3), then what comes after the pixels.
bool read_pixels(Decoder& decoder, std::uint8_t* pixels, std::size_t width, std::size_t height) {
  png_structp png = decoder.png;
  if (setjmp(decoder.jump) != 0) return false;
  png_set_strip_16(png);  // the upper byte, not rounded
  png_set_palette_to_rgb(png);
  if (png_get_color_type(png, decoder.info) == PNG_COLOR_TYPE_GRAY) {
    png_set_expand_gray_1_2_4_to_8(png);
  }
  png_set_gray_to_rgb(png);
  png_set_strip_alpha(png);
  const int passes = png_set_interlace_handling(png);
  png_read_update_info(png, decoder.info);
  if (png_get_rowbytes(png, decoder.info) != 3 * width) png_error(png, "it has an odd format");
  for (int pass = 0; pass < passes; ++pass) {
    for (std::size_t y = 0; y < height; ++y) png_read_row(png, pixels + y * 3 * width, nullptr);
  }
  png_read_end(png, decoder.info);
  return true;
}

/// "\nexif\n    1234\n" and hexadecimal digits: EXIF data as ImageMagick stores it.
std::string from_hex(std::string_view text) {
  for (int line = 0; line < 3; ++line) {
    text.remove_prefix(std::min(text.find('\n'), text.size() - 1) + 1);
    if (text.empty()) return {};
  }
  std::string bytes;
  int upper = -1;
  for (const char digit : text) {
    const std::size_t value = std::string_view("0123456789abcdef").find(digit);
    if (value == std::string_view::npos) continue;
    if (upper < 0) {
      upper = static_cast<int>(value);
    } else {
      bytes += static_cast<char>(upper << 4 | static_cast<int>(value));
      upper = -1;
    }
  }
  return bytes;
}

void collect_metadata(const Decoder& decoder, Decoded& decoded) {
  png_bytep exif = nullptr;
  png_uint_32 exif_size = 0;
  if (png_get_eXIf_1(decoder.png, decoder.info, &exif_size, &exif) != 0) {
    decoded.exif.assign(reinterpret_cast<const char*>(exif), exif_size);
  }
  png_textp texts = nullptr;
  const int count = png_get_text(decoder.png, decoder.info, &texts, nullptr);
  for (int i = 0; i < count; ++i) {
    const std::string_view key(texts[i].key);
    if (texts[i].text == nullptr) continue;
    const bool international = texts[i].compression > PNG_TEXT_COMPRESSION_zTXt;
    const std::size_t length = international ? texts[i].itxt_length : texts[i].text_length;
    const std::string_view text(texts[i].text, length);
    if (key == "XML:com.adobe.xmp") decoded.xmp = text;
    if (key == "Raw profile type exif" && decoded.exif.empty() && !text.empty()) {
      decoded.exif = from_hex(text);
    }
  }
}

}  // namespace

Decoded decode_png(std::string_view content) {
  Decoder decoder;
  decoder.rest = content;
  const auto fail = [&] {
    throw InputError("it is damaged (" + std::string(decoder.message.data()) + "): get it anew");
  };
  if (!read_header(decoder)) fail();
  const std::size_t width = png_get_image_width(decoder.png, decoder.info);
  const std::size_t height = png_get_image_height(decoder.png, decoder.info);
  check_pixel_count(width, height);
  Decoded decoded;
  decoded.image.width = static_cast<int>(width);
  decoded.image.height = static_cast<int>(height);
  decoded.image.pixels.resize(3 * width * height);
  if (!read_pixels(decoder, decoded.image.pixels.data(), width, height)) fail();
  collect_metadata(decoder, decoded);
  return decoded;
}

}  // namespace cmt
