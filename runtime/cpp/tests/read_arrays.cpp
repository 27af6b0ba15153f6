// read_arrays < PATHS: reads files as .npy of float32 or uint8, one path a line. Prints a line for
// each: the number of values, or why the file is refused.

#include <cmt/error.hpp>
#include <iostream>
#include <string>

#include "files.hpp"
#include "npy.hpp"

int main() {
  for (std::string path; std::getline(std::cin, path);) {
    try {
      const std::string content = cmt::read_file(path);
      const bool floats = content.find("'<f4'") != std::string::npos;
      std::cout << (floats ? cmt::parse_npy_floats(content, path).values.size()
                           : cmt::parse_npy_bytes(content, path).values.size())
                << '\n';
    } catch (const cmt::InputError& error) {
      std::cout << "refused: " << error.what() << '\n';
    }
  }
  return 0;
}
