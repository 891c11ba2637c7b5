package oci

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestBegin compares with the runtime: after it a container runs and is known to,
// and one whose process was killed before is an error, not a wait.
func TestBegin(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	b := newBox(t, "sleep 100", nil)
	first := Identify(b.pid)
	b.start(t)
	if err := b.Runtime.Start(ctx, b.ID); err == nil || !strings.Contains(err.Error(), "running") {
		t.Errorf("the runtime says of one that runs: %v", err)
	}
	if err := Signal(first, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if code := b.exit(t); code != 137 {
		t.Errorf("exit status %d", code)
	}
	if err := b.Runtime.Forget(ctx, b.ID); err != nil || b.Runtime.Knows(b.ID) {
		t.Errorf("it is not forgotten: %v", err)
	}

	b = newBox(t, "sleep 100", nil)
	first = Identify(b.pid)
	if err := Signal(first, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := b.Runtime.Begin(ctx, b.ID, first); err == nil || errors.Is(err, os.ErrDeadlineExceeded) && ctx.Err() != nil {
		t.Errorf("a process that is dead began: %v", err)
	}
}
