package main

import (
	"strings"
	"testing"
)

func TestContainerSmoke(t *testing.T) {
	d := newDock(t)
	d.must(t, "berth run -d --name web --network front -p 8888:80 --rootfs $R sleep 100")
	if out := d.must(t, "berth ps --format '{{.Names}} {{.State}}'"); strings.TrimSpace(out) != "web running" {
		t.Error(out)
	}
	d.answer(t, 3, "berth run --rm --rootfs $R --network none sh -c 'exit 3'")
}
