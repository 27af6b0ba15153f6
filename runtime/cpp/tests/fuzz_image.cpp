// libFuzzer target: any bytes as an image file are decoded and prepared, or refused by an
// InputError.

#include <cmt/error.hpp>
#include <cstdint>

#include "preprocessing.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  cmt::Preprocessing p;
  p.height = p.width = 16;
  p.box_height = p.box_width = 18;
  p.longest_aspect = 64;
  p.std = {1, 1, 1};
  static cmt::Preprocessor preprocessor(p);
  try {
    preprocessor.resize(cmt::decode_image(data, size).view());
  } catch (const cmt::InputError&) {
  }
  return 0;
}
