// read_manifests < PATHS: reads files as manifest.json and opens folders as bundles, one path a
// line. Prints a line for each: "ok", or why it is refused.

#include <cmt/error.hpp>
#include <filesystem>
#include <iostream>
#include <string>

#include "bundle.hpp"
#include "files.hpp"

int main() {
  for (std::string path; std::getline(std::cin, path);) {
    try {
      if (std::filesystem::is_directory(path)) {
        cmt::Bundle{path};
      } else {
        cmt::parse_manifest(cmt::read_file(path));
      }
      std::cout << "ok\n";
    } catch (const cmt::InputError& error) {
      std::cout << "refused: " << error.what() << '\n';
    }
  }
  return 0;
}
