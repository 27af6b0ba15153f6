#include <cmt/cmt.h>
#include <stdio.h>

int main(int argc, char** argv) {
  cmt_classifier* classifier = NULL;
  cmt_prediction best;
  size_t found;
  cmt_status status = CMT_INPUT_ERROR;
  if (argc != 3) {
    fputs("usage: example_in_c BUNDLE IMAGE\n", stderr);
    return status;
  }
  status = cmt_open(argv[1], NULL, &classifier);
  if (status == CMT_OK) status = cmt_classify_file(classifier, argv[2], 1, &best, &found);
  if (status == CMT_OK) {
    printf("%s: %s, %g\n", argv[2], best.label, best.probability);
  } else {
    fprintf(stderr, "%s\n", cmt_last_error());
  }
  cmt_close(classifier);
  return status;
}
