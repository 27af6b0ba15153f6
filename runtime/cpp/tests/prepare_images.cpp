// prepare_images HEIGHT WIDTH BOX_HEIGHT BOX_WIDTH LONGEST_ASPECT REPEATS OUT [FILTER] < PATHS
//
// Decodes, resizes and crops image files, one path a line, and writes the pixels of all of them
// to OUT. Prints a line for each: the median time of REPEATS resizes in milliseconds, or why the
// file cannot be used; nothing of such a file is written.

#include <algorithm>
#include <chrono>
#include <cmt/error.hpp>
#include <fstream>
#include <iostream>
#include <string>

#include "preprocessing.hpp"

int main(int argc, char** argv) {
  if (argc != 8 && argc != 9) return 2;
  cmt::Preprocessing p;
  p.height = std::stoi(argv[1]);
  p.width = std::stoi(argv[2]);
  p.box_height = std::stoi(argv[3]);
  p.box_width = std::stoi(argv[4]);
  p.longest_aspect = std::stoi(argv[5]);
  p.std = {1, 1, 1};
  if (argc == 9 && std::string(argv[8]) == "bilinear") {
    p.interpolation = cmt::Interpolation::bilinear;
  }
  const int repeats = std::stoi(argv[6]);
  std::ofstream out(argv[7], std::ios::binary);
  cmt::Preprocessor preprocessor(p);
  for (std::string path; std::getline(std::cin, path);) {
    try {
      const cmt::Image image = cmt::read_image(path);
      std::vector<double> times;
      const std::uint8_t* pixels = nullptr;
      for (int i = 0; i < repeats; ++i) {
        const auto begin = std::chrono::steady_clock::now();
        pixels = preprocessor.resize(image.view());
        const std::chrono::duration<double, std::milli> time =
            std::chrono::steady_clock::now() - begin;
        times.push_back(time.count());
      }
      out.write(reinterpret_cast<const char*>(pixels), std::streamsize{3} * p.height * p.width);
      std::nth_element(times.begin(), times.begin() + repeats / 2, times.end());
      std::cout << times[static_cast<std::size_t>(repeats / 2)] << '\n';
    } catch (const cmt::Error& error) {
      std::cout << "error: " << error.what() << '\n';
    }
  }
  return 0;
}
