package main

import (
	"archive/tar"
	"bytes"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"berth/internal/netns"
)

// images compares how images come and how they run.
func images() []row {
	for _, tool := range []string{"docker-registry", "skopeo", "podman", "tar", "mkfs.ext4"} {
		if _, err := exec.LookPath(tool); err != nil {
			return []row{{what: "images", note: "not measured: " + tool + " is not installed"}}
		}
	}
	host := fresh()
	shell(host, "ip link set lo up")
	dir, gone := disk(host)
	defer gone()
	b := &bed{host: host, dir: dir}
	stop := registry(host, dir)
	defer stop()
	tars := makeLayers(dir)
	b.push("five", tars)
	return append(b.pulls(dir, tars), append(b.big(dir), b.imageRuns()...)...)
}

// disk mounts a file system as a Debian host has it, on the disk and not on the
// private /run, which is memory. It is one of its own because an ext4 without a
// journal, as some machines have, looks at all inodes that were removed just now
// whenever it makes one (recently_deleted in fs/ext4/ialloc.c): there a pull
// that follows a removal takes 7 s instead of 0.7, and tar as long.
func disk(host *netns.NS) (dir string, gone func()) {
	all := must(os.MkdirTemp("/var/tmp", "berth-"))
	dir = filepath.Join(all, "disk")
	check(os.Mkdir(dir, 0o755))
	file := filepath.Join(all, "ext4")
	check(os.WriteFile(file, nil, 0o600))
	check(os.Truncate(file, 16<<30))
	run(host, exec.Command("mkfs.ext4", "-q", "-F", file))
	run(host, exec.Command("mount", "-o", "loop", file, dir))
	return dir, func() {
		check(syscall.Unmount(dir, syscall.MNT_DETACH))
		check(os.RemoveAll(all))
	}
}

const registryAt = "127.0.0.1:5000"

// registry starts Debian's registry.
func registry(host *netns.NS, dir string) (stop func()) {
	config := filepath.Join(dir, "registry.yml")
	text := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s/registry}}\nhttp: {addr: %q}\n", dir, registryAt)
	check(os.WriteFile(config, []byte(text), 0o600))
	cmd := exec.Command("docker-registry", "serve", config)
	check(host.Do(cmd.Start))
	for range 200 {
		var c net.Conn
		err := host.Do(func() (err error) { c, err = net.Dial("tcp", registryAt); return err })
		if err == nil {
			c.Close()
			break
		}
		time.Sleep(50 * time.Millisecond)
	}
	return func() {
		_ = cmd.Process.Kill() // best effort: the process's namespaces end with the run
		_ = cmd.Wait()
	}
}

// makeLayers writes five layers with 10,000 files, as programs and texts are:
// half of it can be compressed.
func makeLayers(dir string) (tars []string) {
	random := rand.New(rand.NewPCG(1, 2))
	for l := range 5 {
		path := filepath.Join(dir, fmt.Sprintf("layer%d.tar", l))
		f := must(os.Create(path))
		w := tar.NewWriter(f)
		for i := range 2000 {
			if i%100 == 0 {
				check(w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: fmt.Sprintf("l%d/d%d/", l, i/100), Mode: 0o755}))
			}
			content := make([]byte, 1+random.IntN(20_000))
			for j := range len(content) / 2 {
				content[j] = byte(random.Uint32())
			}
			check(w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: fmt.Sprintf("l%d/d%d/f%d", l, i/100, i), Mode: 0o644, Size: int64(len(content))}))
			must(w.Write(content))
		}
		if l == 0 {
			busyboxInto(w)
		}
		check(w.Close())
		check(f.Close())
		tars = append(tars, path)
	}
	return tars
}

// busyboxInto makes a root of a layer: containers run there.
func busyboxInto(w *tar.Writer) {
	program := must(os.ReadFile(must(exec.LookPath("busybox"))))
	for _, d := range []string{"bin/", "etc/", "tmp/"} {
		check(w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: d, Mode: 0o755}))
	}
	check(w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755, Size: int64(len(program))}))
	must(w.Write(program))
	for _, name := range []string{"true", "sleep"} {
		check(w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + name, Linkname: "busybox"}))
	}
}

// push brings layers into the registry as one image, by skopeo.
func (b *bed) push(name string, tars []string) {
	archive := filepath.Join(b.dir, name+".docker.tar")
	f := must(os.Create(archive))
	w := tar.NewWriter(f)
	put := func(name string, size int64, r io.Reader) {
		check(w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: size}))
		must(io.Copy(w, r))
	}
	var layers, diffs []string
	for i, path := range tars {
		layers = append(layers, fmt.Sprintf("%q", fmt.Sprintf("%d.tar", i)))
		diffs = append(diffs, fmt.Sprintf("%q", "sha256:"+strings.Fields(run(b.host, exec.Command("sha256sum", path)))[0]))
		in := must(os.Open(path))
		put(fmt.Sprintf("%d.tar", i), must(in.Stat()).Size(), in)
		in.Close()
	}
	config := fmt.Sprintf(`{"architecture":%q,"os":"linux","config":{"Cmd":["true"]},"rootfs":{"type":"layers","diff_ids":[%s]}}`, runtime.GOARCH, strings.Join(diffs, ","))
	manifest := fmt.Sprintf(`[{"Config":"config.json","RepoTags":["%s:1"],"Layers":[%s]}]`, name, strings.Join(layers, ","))
	put("config.json", int64(len(config)), strings.NewReader(config))
	put("manifest.json", int64(len(manifest)), bytes.NewReader([]byte(manifest)))
	check(w.Close())
	check(f.Close())
	run(b.host, exec.Command("skopeo", "copy", "-q", "--dest-tls-verify=false", "docker-archive:"+archive, "docker://"+registryAt+"/"+name+":1"))
	check(os.Remove(archive))
}

// pulls compares an image of five layers with podman's and with tar's.
func (b *bed) pulls(dir string, tars []string) []row {
	podmanArgs := []string{"--root", dir + "/podman/root", "--runroot", dir + "/podman/run", "--tmpdir", dir + "/podman/tmp", "--storage-driver", "overlay", "--events-backend", "file"}
	image := registryAt + "/five:1"
	var compressed []string
	for _, path := range tars {
		gz := path + ".gz"
		shell(b.host, fmt.Sprintf("gzip -6 -c %s >%s", path, gz))
		compressed = append(compressed, gz)
	}
	ours := func(s *sample) func() { return func() { s.timed(func() { b.berth("pull", "-q", image) }) } }
	clean := func() {
		b.berth("rmi", "-f", image)
		check(os.RemoveAll(filepath.Join(dir, "untarred")))
		syscall.Sync() // what one has written is not another's to wait for
	}
	var beside, theirs, alone, unpacked sample
	for i := range rounds(7) {
		turn(i, ours(&beside), func() {
			theirs.timed(func() {
				run(b.host, exec.Command("podman", append(podmanArgs, "pull", "-q", "--tls-verify=false", image)...))
			})
		})
		run(b.host, exec.Command("podman", append(podmanArgs, "rmi", "-f", image)...))
		clean()
		turn(i, ours(&alone), func() { unpacked.timed(func() { untar(dir, compressed) }) })
		clean()
	}
	return []row{
		{what: "pull of 5 layers with 10,000 files / podman pull", ours: beside, reference: theirs, unit: " ms", want: atMost(0.667)},
		{what: "the same / tar -xz of the same layers side by side", ours: alone, reference: unpacked, unit: " ms", want: atMost(1.5)},
	}
}

// untar unpacks layers with tar, side by side.
func untar(dir string, compressed []string) {
	var wait sync.WaitGroup
	for i, path := range compressed {
		to := filepath.Join(dir, "untarred", fmt.Sprint(i))
		check(os.MkdirAll(to, 0o755))
		wait.Add(1)
		go func() {
			defer wait.Done()
			check(exec.Command("tar", "-xzf", path, "-C", to).Run())
		}()
	}
	wait.Wait()
}

// big is what a pull of a layer of 1 GB needs of memory.
func (b *bed) big(dir string) []row {
	path := filepath.Join(dir, "big.tar")
	f := must(os.Create(path))
	w := tar.NewWriter(f)
	const size = 1 << 30
	check(w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: "big", Mode: 0o644, Size: size}))
	random := rand.New(rand.NewPCG(3, 4))
	block := make([]byte, 1<<20)
	for range size >> 20 {
		for j := 0; j < len(block); j += 8 << 10 { // some of each block is its own
			block[j] = byte(random.Uint32())
		}
		must(w.Write(block))
	}
	check(w.Close())
	check(f.Close())
	b.push("big", []string{path})
	check(os.Remove(path))
	var peak sample
	// A process begins with the most that its parent's memory was (execve keeps
	// it): this one's is not to be measured, so a small one is between.
	const measure = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=subprocess.DEVNULL); print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss)"
	kib := run(b.host, exec.Command("python3", "-c", measure, berthBin, "--root", b.dir+"/root", "--run", b.dir+"/run", "pull", "-q", registryAt+"/big:1"))
	peak.add(math.Round(must(strconv.ParseFloat(strings.TrimSpace(kib), 64)) / 1024))
	b.berth("rmi", "-f", registryAt+"/big:1")
	return []row{{what: "resident memory at most, pulling a layer of 1 GB", ours: peak, unit: " MB", want: itselfMost(64)}}
}

// imageRuns compares a container of an image with one of a directory.
func (b *bed) imageRuns() []row {
	root := rootfs()
	b.berth("pull", "-q", registryAt+"/five:1")
	var ofImage, ofDir sample
	for i := range rounds(30) {
		turn(i, func() {
			ofImage.timed(func() { b.berth("run", "--rm", "--network", "none", registryAt+"/five:1", "true") })
		}, func() {
			ofDir.timed(func() { b.berth("run", "--rm", "--network", "none", "--rootfs", root, "true") })
		})
	}
	return []row{{what: "run --rm --network none IMAGE true / the same with --rootfs DIR", ours: ofImage, reference: ofDir, unit: " ms", want: atMost(1.1)}}
}
