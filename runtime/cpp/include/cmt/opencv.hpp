#pragma once

#include <cmt/error.hpp>
#include <cmt/image.hpp>
#include <opencv2/core.hpp>

namespace cmt {

/// An OpenCV picture as it lies, rows of any stride: CV_8UC3 in OpenCV's order, blue first, unless
/// `colours` says rgb; CV_8UC1 as grey. This header alone needs OpenCV, its core module.
/// Throws InputError for other types, and for what has not two dimensions or no pixels.
inline ImageView view(const cv::Mat& picture, PixelFormat colours = PixelFormat::bgr) {
  const bool is_grey = picture.type() == CV_8UC1;
  const bool is_colour =
      picture.type() == CV_8UC3 && (colours == PixelFormat::bgr || colours == PixelFormat::rgb);
  if (picture.dims != 2 || picture.empty() || (!is_grey && !is_colour)) {
    throw InputError("a cv::Mat must be CV_8UC3 or CV_8UC1 with pixels in it: convert it");
  }
  return {picture.data, picture.cols, picture.rows, picture.step[0],
          is_grey ? PixelFormat::grey : colours};
}

}  // namespace cmt
