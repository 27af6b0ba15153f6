// Stands in for OpenCV's header: what cmt/opencv.hpp reads of cv::Mat, by OpenCV 4's documentation.
#pragma once

#include <array>
#include <cstddef>

#define CV_8UC1 0
#define CV_8UC3 16

namespace cv {

class Mat {
 public:
  Mat(int height, int width, int of, void* pixels, std::size_t stride)
      : rows(height),
        cols(width),
        data(static_cast<unsigned char*>(pixels)),
        step{stride, of == CV_8UC1 ? std::size_t{1} : std::size_t{3}},
        type_(of) {}
  int type() const { return type_; }
  bool empty() const { return data == nullptr || rows == 0 || cols == 0; }

  int dims = 2;
  int rows;
  int cols;
  unsigned char* data;
  std::array<std::size_t, 2> step;

 private:
  int type_;
};

}  // namespace cv
