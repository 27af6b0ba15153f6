// describe_machine ROOT: what cmt_bench says of a machine whose /proc is in ROOT, as JSON.

#include <iostream>

#include "../tools/command.hpp"
#include "../tools/machine.hpp"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  std::cout << cmt::tools::to_text(cmt::tools::describe_machine(argv[1]), 1) << '\n';
  return 0;
}
