// use_views BUNDLE ARTEFACT OUT < LINES
//
// What the bundle's file answers to raw pixels, a line "FORMAT WIDTH HEIGHT STRIDE PATH" for each
// image: writes the outputs one after the other to OUT and prints the shape of each, or prints why
// the images are refused. FORMAT is rgb, bgr, grey or nv12; nv12-apart, whose planes lie in memory
// of their own; mat and mat-rgb, by way of OpenCV's cv::Mat, of one channel where STRIDE < 3 *
// WIDTH.

#include <algorithm>
#include <cmt/classifier.hpp>
#include <cmt/opencv.hpp>
#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <list>
#include <map>
#include <numeric>
#include <string>

namespace {

using Bytes = std::vector<std::uint8_t>;

/// Memory of just these bytes, so that a sanitizer sees what is read beyond them.
struct Picture {
  Bytes bytes;
  Bytes chroma;
};

cmt::ImageView view_of(const std::string& format, int width, int height, std::size_t stride,
                       Picture& picture) {
  std::uint8_t* pixels = picture.bytes.data();
  if (format.rfind("mat", 0) == 0) {
    const int type = stride < 3 * static_cast<std::size_t>(width) ? CV_8UC1 : CV_8UC3;
    const cv::Mat mat(height, width, type, pixels, stride);
    return format == "mat" ? cmt::view(mat) : cmt::view(mat, cmt::PixelFormat::rgb);
  }
  if (format == "nv12-apart") {
    const auto luma = picture.bytes.begin() + static_cast<std::ptrdiff_t>(stride) * height;
    picture.chroma.assign(luma, picture.bytes.end());
    picture.bytes.erase(luma, picture.bytes.end());
    picture.bytes.shrink_to_fit();
    return {picture.bytes.data(), width, height, stride, cmt::PixelFormat::nv12,
            picture.chroma.data()};
  }
  const std::map<std::string, cmt::PixelFormat> formats{{"rgb", cmt::PixelFormat::rgb},
                                                        {"bgr", cmt::PixelFormat::bgr},
                                                        {"grey", cmt::PixelFormat::grey},
                                                        {"nv12", cmt::PixelFormat::nv12}};
  return {pixels, width, height, stride, formats.at(format)};
}

void write(const std::vector<cmt::Output>& outputs, const char* path) {
  std::ofstream out(path, std::ios::binary);
  for (const cmt::Output& output : outputs) {
    const std::size_t size = std::accumulate(output.shape.begin(), output.shape.end(),
                                             sizeof(float), std::multiplies<>());
    out.write(reinterpret_cast<const char*>(output.values), static_cast<std::streamsize>(size));
    for (const std::size_t side : output.shape) std::cout << side << ' ';
    std::cout << '\n';
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  try {
    cmt::Classifier classifier(argv[1], {argv[2], 1});
    std::list<Picture> pictures;
    std::vector<cmt::ImageView> views;
    std::string format;
    std::string path;
    std::size_t stride = 0;
    for (int width = 0, height = 0; std::cin >> format >> width >> height >> stride >> path;) {
      std::ifstream file(path, std::ios::binary);
      pictures.push_back({Bytes(std::istreambuf_iterator<char>(file), {}), {}});
      views.push_back(view_of(format, width, height, stride, pictures.back()));
    }
    write(classifier.outputs(views), argv[3]);
  } catch (const cmt::InputError& error) {
    std::cout << "refused: " << error.what() << '\n';
  }
  return 0;
}
