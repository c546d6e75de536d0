namespace lmkv {}
