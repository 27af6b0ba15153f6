// print_signed < PATHS: what a signature covers of each file, read as manifest.json, a line each.

#include <iostream>
#include <string>

#include "files.hpp"
#include "signature.hpp"

int main() {
  for (std::string path; std::getline(std::cin, path);) {
    std::cout << cmt::signed_bytes(cmt::read_file(path)) << '\n';
  }
  return 0;
}
