package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/internal/cli"
)

func TestManualIsTheSameEveryMonth(t *testing.T) {
	dir := t.TempDir()
	root := cli.Root()
	root.DisableAutoGenTag = true
	if err := write(root, dir); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile(filepath.Join(dir, "berth-network-create.8"))
	if err != nil {
		t.Fatal(err)
	}
	if want := `.TH "BERTH-NETWORK-CREATE" "8" "" "Berth" "Berth manual"`; !strings.Contains(string(page), want+"\n") {
		t.Errorf("no %s in:\n%s", want, page[:min(len(page), 200)])
	}
}
