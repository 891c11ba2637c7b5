package oci

import (
	"context"
	"os/exec"
	"strings"
	"time"
)

// Version is what a program says of its version: the third word of the first
// line of --version, as of runc, crun and conmon. It is "" if it says none.
func Version(ctx context.Context, path string) string {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	line, _, _ := strings.Cut(string(out), "\n")
	if words := strings.Fields(line); err == nil && len(words) > 2 {
		return words[2]
	}
	return ""
}
