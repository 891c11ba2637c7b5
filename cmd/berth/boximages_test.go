package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// boxImage is an image of the registry that served starts.
const boxImage = "127.0.0.1:5000/box:1"

// served makes a registry with two images of busybox, box:1 and box:2, and
// returns the commands that start it on a host.
func served(t *testing.T) (serve string) {
	t.Helper()
	for _, program := range []string{"docker-registry", "skopeo", "curl"} {
		if _, err := exec.LookPath(program); err != nil {
			t.Skipf("%v: scripts/setup installs it", err)
		}
	}
	dir := t.TempDir()
	config := filepath.Join(dir, "registry.yml")
	if err := os.WriteFile(config, []byte("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: "+dir+"}}\nhttp: {addr: '127.0.0.1:5000'}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	serve = "docker-registry serve " + config + " >" + dir + "/log 2>&1 & until curl -sf 127.0.0.1:5000/v2/ >/dev/null; do :; done\n"
	d := newDock(t)
	d.must(t, serve+`for n in 1 2; do
		tar -C $R -c . | berth import -c 'CMD ["sleep","100"]' -c "LABEL n=$n" - box:$n && berth save -o `+dir+`/box.tar box:$n &&
		skopeo copy -q --dest-tls-verify=false docker-archive:`+dir+`/box.tar docker://127.0.0.1:5000/box:$n && berth rmi box:$n || exit 1
	done`)
	return serve
}

// TestImagesKilledAnywhere kills what pulls, runs and removes images at every
// point of its own: an image is there and runs, or it is not.
func TestImagesKilledAnywhere(t *testing.T) {
	if testing.Short() {
		t.Skip("kills some dozens of processes")
	}
	serve := served(t)
	const (
		at   = " --network front --ip 10.1.0.9 "
		pull = "berth pull -q " + boxImage
		run  = "berth run -d --name web -p 8888:80" + at + boxImage
		made = "berth create --name web -p 8888:80" + at + boxImage
	)
	for _, f := range []fault{
		{"run -d", serve, run, []string{pull, made}},
		{"run --rm --pull always", serve + pull + " && ", "berth run --rm --pull always --name job" + at + boxImage + " true",
			[]string{"berth create --name job" + at + boxImage + " true"}},
		{"rm -f", serve + run + " && ", "berth rm -f web", []string{"berth stop -t 0 web"}},
		{"rmi", serve + pull + " && ", "berth rmi " + boxImage, nil},
		{"rmi -f of one that is used", serve + run + " && ", "berth rmi -f " + boxImage, nil},
	} {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			f.boxes(t)
		})
	}
}

// TestImagesAtOnce pulls, runs, restarts and removes two images from several
// processes. Nobody is told anything but that an image is gone or used, every
// image that there is in the end runs, and nothing is left.
func TestImagesAtOnce(t *testing.T) {
	t.Parallel()
	d := newDock(t)
	d.must(t, served(t))
	const rounds = 12
	var wg sync.WaitGroup
	for i, verb := range []string{
		"berth pull -q $ONE",
		"berth run --rm --network none $ONE true",
		"berth run --rm --pull always --network none $TWO true",
		"berth run -d --name web$N --network none $TWO && berth restart -t 0 web$N && berth exec web$N true && berth rm -f web$N",
		"berth rmi -f $ONE",
		"berth rmi $TWO",
		"berth image prune -a",
		"berth images",
		"timeout -s KILL 0.0$N berth pull -q $ONE || true",
	} {
		wg.Go(func() {
			for n := range rounds {
				out, err := d.sh(verb, "ONE="+boxImage, "TWO=127.0.0.1:5000/box:2", fmt.Sprintf("N=%d", n+1))
				if err != nil && !strings.Contains(out, "no such image here") && !strings.Contains(out, "uses it") {
					t.Errorf("%d: %v: %s", i, err, out)
				}
			}
		})
	}
	wg.Wait()
	d.must(t, "berth pull -q "+boxImage)
	d.order(t, []string{d.must(t, boxWishes)})
}
