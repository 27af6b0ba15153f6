// open_bundles IMAGE < PATHS
//
// Opens bundles as a program would, one path a line, and classifies the image with each. Prints a
// line for each: "ok", or the kind of what was thrown and its message.

#include <cmt/classifier.hpp>
#include <iostream>
#include <string>

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const cmt::Image image = cmt::read_image(argv[1]);
  for (std::string path; std::getline(std::cin, path);) {
    try {
      cmt::Classifier classifier(path);
      classifier.classify(image.view());
      std::cout << "ok\n";
    } catch (const cmt::InputError& error) {
      std::cout << "input: " << error.what() << '\n';
    } catch (const cmt::MachineError& error) {
      std::cout << "machine: " << error.what() << '\n';
    } catch (const std::exception& error) {
      std::cout << "no Error of cmt: " << error.what() << '\n';
    }
  }
  return 0;
}
