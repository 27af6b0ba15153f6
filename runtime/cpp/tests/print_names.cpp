// print_names < NAMES: each name, ended by a zero byte, as messages show it, on a line of its own.

#include <iostream>
#include <string>

#include "text.hpp"

int main() {
  for (std::string name; std::getline(std::cin, name, '\0');) {
    std::cout << cmt::printable(name) << '\n';
  }
  return 0;
}
