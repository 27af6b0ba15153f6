#include <cmt/classifier.hpp>
#include <iostream>

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "usage: example BUNDLE IMAGE...\n";
    return 2;
  }
  try {
    cmt::Classifier classifier(argv[1]);
    for (int i = 2; i < argc; ++i) {
      const cmt::Image image = cmt::read_image(argv[i], classifier.image_range());
      const cmt::Prediction best = classifier.classify(image.view()).front();
      std::cout << argv[i] << ": " << best.label << ", " << best.probability << '\n';
    }
  } catch (const cmt::Error& error) {
    std::cerr << error.what() << '\n';
    return 2;
  }
  return std::cout.flush() ? 0 : 3;
}
