/* use_c_interface BUNDLE IMAGE TEXT
 *
 * What a C program may expect of cmt.h, on a real bundle, an image and a file that is none. Prints
 * what does not hold; exit status 1 then. */

#include <cmt/cmt.h>
#include <stdio.h>
#include <string.h>

#define TOP 5

static int failed = 0;

static void expect(int holds, const char* what) {
  if (holds) return;
  printf("does not hold: %s (%s)\n", what, cmt_last_error());
  failed = 1;
}

static int refused(cmt_status status, const char* words) {
  return status == CMT_INPUT_ERROR && strstr(cmt_last_error(), words) != NULL;
}

static void check_images(cmt_classifier* classifier, const char* image, const char* text) {
  static unsigned char bytes[1 << 20];
  cmt_prediction best[TOP];
  cmt_prediction again[TOP];
  size_t found = 0;
  size_t size = 0;
  FILE* file = fopen(image, "rb");
  if (file != NULL) {
    size = fread(bytes, 1, sizeof bytes, file);
    fclose(file);
  }
  expect(cmt_classify_file(classifier, image, TOP, best, &found) == CMT_OK, "a file is read");
  expect(found == 2 && best[0].score > best[1].score, "there are two classes, the best first");
  expect(strcmp(best[0].label, cmt_label(classifier, best[0].index)) == 0, "labels are the labels");
  expect(cmt_classify_bytes(classifier, bytes, size, TOP, again, &found) == CMT_OK,
         "its bytes are read");
  expect(found == 2 && again[0].score == best[0].score, "they are the same image");
  expect(refused(cmt_classify_file(classifier, text, TOP, best, &found), "is no JPEG or PNG file"),
         "a text is refused");
  expect(refused(cmt_classify_file(classifier, image, 0, best, &found), "top must be at least 1"),
         "no class at all is refused");
}

static void check_pixels(cmt_classifier* classifier) {
  const unsigned char grey[4] = {0, 80, 160, 255};
  cmt_image image = {grey, 2, 2, 2, CMT_GREY, NULL};
  cmt_prediction best[1];
  size_t found = 0;
  expect(cmt_classify_pixels(classifier, &image, 1, best, &found) == CMT_OK && found == 1,
         "pixels are read, and as many classes given as asked for");
  image.format = 9;
  expect(refused(cmt_classify_pixels(classifier, &image, 1, best, &found), "no pixel format 9"),
         "an unknown format is refused");
  image.format = CMT_RGB;
  expect(refused(cmt_classify_pixels(classifier, &image, 1, best, &found), "a stride of 3 * width"),
         "rows that are too short are refused");
  expect(refused(cmt_classify_pixels(classifier, NULL, 1, best, &found), "the image is NULL"),
         "no image is refused");
  expect(refused(cmt_classify_pixels(NULL, &image, 1, best, &found), "is NULL"),
         "no classifier is refused");
  image.format = CMT_GREY;
  expect(refused(cmt_classify_pixels(classifier, &image, 1, NULL, &found), "best is NULL"),
         "no place for the classes is refused");
}

int main(int argc, char** argv) {
  cmt_classifier* classifier = NULL;
  cmt_classifier* shared = NULL;
  cmt_options options = {"openvino/int8", NULL, 1, NULL, 0};
  if (argc != 4) return 2;
  expect(strcmp(cmt_version(), CMT_VERSION) == 0, "the header is the library's");
  expect(refused(cmt_open("", NULL, &classifier), "is no bundle") && classifier == NULL,
         "what is no bundle is refused");
  expect(refused(cmt_open(NULL, NULL, &classifier), "the bundle is NULL"), "so is nothing");
  options.threads = 5000;
  expect(refused(cmt_open(argv[1], &options, &classifier), "threads must be from 1 to 4096"),
         "an absurd number of threads is refused");
  options.threads = 1;
  if (cmt_open(argv[1], &options, &classifier) != CMT_OK) {
    expect(0, "a bundle is opened");
    return 1;
  }
  expect(strcmp(cmt_last_error(), "") == 0, "there is no error then");
  expect(strcmp(cmt_artefact(classifier), "openvino/cmt_tiny.int8.xml") == 0, "the file is named");
  expect(cmt_label_count(classifier) == 2 && cmt_label(classifier, 2) == NULL, "it has two labels");
  expect(cmt_share(classifier, &shared) == CMT_OK, "it is shared");
  cmt_close(classifier);
  check_images(shared, argv[2], argv[3]);
  check_pixels(shared);
  cmt_close(shared);
  cmt_close(NULL);
  return failed;
}
