// libFuzzer target: any text as manifest.json is read or refused by an InputError.

#include <cmt/error.hpp>
#include <cstdint>

#include "bundle.hpp"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  try {
    cmt::parse_manifest({reinterpret_cast<const char*>(data), size});
  } catch (const cmt::InputError&) {
  }
  return 0;
}
