#include <cstdio>  // jpeglib.h needs it

#include <jpeglib.h>

#include <jerror.h>  // takes its names from jpeglib.h

#include <algorithm>
#include <array>
#include <cmt/error.hpp>
#include <csetjmp>
#include <memory>
#include <new>

#include "decoders.hpp"
#include "jpeg_segments.hpp"

namespace cmt {
namespace {

/// libjpeg reports errors by a jump, which must not pass over a C++ object. So every function
/// here that calls the library and holds such objects keeps them outside of the jump.
struct JpegDecoder {
  jpeg_decompress_struct info{};
  jpeg_error_mgr errors{};
  jpeg_source_mgr source{};
  std::jmp_buf jump{};
  std::array<char, JMSG_LENGTH_MAX> message{};
};

[[noreturn]] void on_error(j_common_ptr info) {
  auto* decoder = static_cast<JpegDecoder*>(info->client_data);
  info->err->format_message(info, decoder->message.data());
  std::longjmp(decoder->jump, 1);
}

void on_message(j_common_ptr /*info*/, int /*level*/) {
}  // warnings about odd data, which Pillow ignores as well

void nothing(j_decompress_ptr /*info*/) {}

boolean on_end_of_data(j_decompress_ptr info) {
  ERREXIT(info, JERR_INPUT_EOF);
  return FALSE;
}

void skip(j_decompress_ptr info, long count) {
  if (count <= 0) return;
  if (static_cast<std::size_t>(count) > info->src->bytes_in_buffer) on_end_of_data(info);
  info->src->next_input_byte += count;
  info->src->bytes_in_buffer -= static_cast<std::size_t>(count);
}

bool read_header(JpegDecoder& decoder, std::string_view content) {
  decoder.info.err = jpeg_std_error(&decoder.errors);
  decoder.info.client_data = &decoder;
  decoder.errors.error_exit = on_error;
  decoder.errors.emit_message = on_message;
  if (setjmp(decoder.jump) != 0) return false;
  jpeg_create_decompress(&decoder.info);
  decoder.info.client_data = &decoder;
  decoder.source.next_input_byte = reinterpret_cast<const JOCTET*>(content.data());
  decoder.source.bytes_in_buffer = content.size();
  decoder.source.init_source = nothing;
  decoder.source.fill_input_buffer = on_end_of_data;
  decoder.source.skip_input_data = skip;
  decoder.source.resync_to_restart = jpeg_resync_to_restart;
  decoder.source.term_source = nothing;
  decoder.info.src = &decoder.source;
  jpeg_read_header(&decoder.info, TRUE);
  return true;
}

/// (height, width, components) of the decoder's output.
bool read_pixels(JpegDecoder& decoder, std::uint8_t* pixels, std::size_t stride) {
  if (setjmp(decoder.jump) != 0) return false;
  jpeg_start_decompress(&decoder.info);
  while (decoder.info.output_scanline < decoder.info.output_height) {
    JSAMPROW row = pixels + decoder.info.output_scanline * stride;
    jpeg_read_scanlines(&decoder.info, &row, 1);
  }
  jpeg_finish_decompress(&decoder.info);
  return true;
}

/// Grey or CMYK to RGB as Pillow converts them; it takes CMYK to be inverted, as Adobe's is.
void to_rgb(const std::uint8_t* pixels, int components, Image& image) {
  const std::size_t count = image.pixels.size() / 3;
  for (std::size_t i = 0; i < count; ++i) {
    std::uint8_t* rgb = image.pixels.data() + 3 * i;
    if (components == 1) {
      std::fill_n(rgb, 3, pixels[i]);
      continue;
    }
    const std::uint8_t* cmyk = pixels + 4 * i;
    const int light = cmyk[3];
    for (int c = 0; c < 3; ++c) {
      const int ink = 255 - cmyk[c];
      const int product = ink * light + 128;  // / 255, rounded
      rgb[c] = static_cast<std::uint8_t>(std::max(light - (((product >> 8) + product) >> 8), 0));
    }
  }
}

}  // namespace

Decoded decode_jpeg(std::string_view content) {
  auto decoder = std::make_unique<JpegDecoder>();
  const auto destroy = [](JpegDecoder* d) { jpeg_destroy_decompress(&d->info); };
  const std::unique_ptr<JpegDecoder, decltype(destroy)> cleanup(decoder.get(), destroy);
  const auto fail = [&] {
    if (decoder->errors.msg_code == JERR_OUT_OF_MEMORY) throw std::bad_alloc();
    refuse_damaged(decoder->message.data());
  };
  Jpeg jpeg = read_jpeg(content);
  if (!read_header(*decoder, jpeg.pixels)) fail();
  jpeg_decompress_struct& info = decoder->info;
  const int components = info.num_components;
  info.out_color_space = components == 1 ? JCS_GRAYSCALE : components == 3 ? JCS_RGB : JCS_CMYK;
  Decoded decoded{{}, std::move(jpeg.exif), std::move(jpeg.xmp)};
  decoded.image.width = static_cast<int>(info.image_width);
  decoded.image.height = static_cast<int>(info.image_height);
  const std::size_t count = std::size_t{info.image_width} * info.image_height;
  decoded.image.pixels.resize(3 * count);
  const std::size_t stride = static_cast<std::size_t>(components) * info.image_width;
  if (components == 3) {
    if (!read_pixels(*decoder, decoded.image.pixels.data(), stride)) fail();
  } else {
    std::vector<std::uint8_t> pixels(static_cast<std::size_t>(components) * count);
    if (!read_pixels(*decoder, pixels.data(), stride)) fail();
    to_rgb(pixels.data(), components, decoded.image);
  }
  return decoded;
}

}  // namespace cmt
