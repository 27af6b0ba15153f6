// decode_images [LOW HIGH] < REQUESTS > ANSWERS
//
// LOW and HIGH are what is black and white in images that do not say so.
// Answers until the input ends; numbers have 32 bits, little-endian. A request is a length and so
// many bytes of an image file; an answer is a status (0 refused, 1 read, 2 read and its EXIF data
// is unreadable, 3 the machine failed), the width, the height, the pixels' CRC-32, the length of
// what was said, and that.

#include <zlib.h>

#include <array>
#include <cmt/error.hpp>
#include <cmt/image.hpp>
#include <cstring>
#include <iostream>
#include <optional>
#include <string>

namespace {

bool read_number(std::uint32_t& value) {
  std::array<char, 4> bytes{};
  if (!std::cin.read(bytes.data(), bytes.size())) return false;
  std::memcpy(&value, bytes.data(), bytes.size());
  return true;
}

void answer(const std::array<std::uint32_t, 4>& numbers, const std::string& said) {
  const auto length = static_cast<std::uint32_t>(said.size());
  std::cout.write(reinterpret_cast<const char*>(numbers.data()), sizeof numbers);
  std::cout.write(reinterpret_cast<const char*>(&length), sizeof length);
  std::cout << said << std::flush;
}

}  // namespace

int main(int argc, char** argv) {
  std::optional<cmt::ImageRange> range;
  if (argc == 3) range = cmt::ImageRange{std::stod(argv[1]), std::stod(argv[2])};
  std::string content;
  for (std::uint32_t length = 0; read_number(length);) {
    content.resize(length);
    if (!std::cin.read(content.data(), static_cast<std::streamsize>(length))) return 2;
    try {
      const cmt::Image image = cmt::decode_image(
          reinterpret_cast<const std::uint8_t*>(content.data()), content.size(), range);
      const auto checksum =
          static_cast<std::uint32_t>(crc32_z(0, image.pixels.data(), image.pixels.size()));
      answer({image.exif_unreadable ? 2U : 1U, static_cast<std::uint32_t>(image.width),
              static_cast<std::uint32_t>(image.height), checksum},
             "");
    } catch (const cmt::InputError& error) {
      answer({0, 0, 0, 0}, error.what());
    } catch (const cmt::MachineError& error) {
      answer({3, 0, 0, 0}, error.what());
    }
  }
  return 0;
}
