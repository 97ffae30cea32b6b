"""Real work under the profiles: small projects of many kinds, as shell lines, for the tests."""

from __future__ import annotations

import attrs

DEBIAN, WORKBENCH = "sandboxworker/debian:bookworm", "sandboxworker/workbench:bookworm"


@attrs.frozen
class Work:
    """``script`` must end with 0 and its output contain ``told``.

    ``strict``: whether it works under the profile of that name as well.
    """

    id: str
    script: str
    told: str
    image: str = WORKBENCH
    strict: bool = True


_LEAK = (
    "#include <stdlib.h>\nint main(int n, char **a) { char *p = malloc(9); p = 0; return p != 0; }"
)
_OVERFLOW = "int main(int n, char **a) { int x[2] = {0}; return x[n + 4]; }"
_RACE = """#include <pthread.h>
int x; void *f(void *a) { x++; return 0; }
int main(void) { pthread_t a, b; pthread_create(&a, 0, f, 0); pthread_create(&b, 0, f, 0);
pthread_join(a, 0); pthread_join(b, 0); return 0; }"""
#: Each of xdist's processes has a server of its own.
_DATABASE_SUITE = """import subprocess
import pytest

@pytest.fixture(scope="session")
def database(tmp_path_factory):
    place = str(tmp_path_factory.mktemp("db"))
    pg = ("pg_ctl", "-D", place, "-l", f"{place}/log", "-w", "-m", "fast")
    subprocess.run(["initdb", "-D", place], check=True)
    subprocess.run([*pg, "-o", f"-k {place} -c listen_addresses=''", "start"], check=True)
    yield place
    subprocess.run([*pg, "stop"], check=True)

@pytest.mark.parametrize("n", [1, 10, 100, 1000])
def test_sum(database, n):
    ask = ["psql", "-h", database, "-tAc", f"select sum(i) from generate_series(1, {n}) i"]
    assert int(subprocess.check_output([*ask, "postgres"])) == n * (n + 1) // 2"""
_HELLO = '#include <stdio.h>\nint main(void) { puts("hello"); return 0; }'


def _file(name: str, text: str) -> str:
    return f"cat >{name} <<'END'\n{text}\nEND\n"


def _sanitizers(compiler: str, image: str) -> tuple[Work, ...]:
    address = (
        f"{_file('o.c', _OVERFLOW)}{compiler} -g -fsanitize=address o.c -o o\n./o 2>&1 || true"
    )
    leak = f"{_file('l.c', _LEAK)}{compiler} -g -fsanitize=address l.c -o l\n./l 2>&1 || true"
    undefined = (
        f"{_file('u.c', 'int main(int n, char **a) { return (n << 31) << 1 && 0; }')}"
        f"{compiler} -fsanitize=undefined u.c -o u\n./u 2>&1 && echo over"
    )
    return (
        Work(f"{compiler}-address", address, "stack-buffer-overflow", image),
        Work(f"{compiler}-leak", leak, "detected memory leaks", image, strict=False),
        Work(f"{compiler}-undefined", undefined, "over", image),
    )


#: What the ordinary image can do; always tried.
BRIEF = (
    *_sanitizers("gcc", DEBIAN),
    Work("gcc", f"{_file('h.c', _HELLO)}gcc -O2 -flto h.c -o h && ./h", "hello", DEBIAN),
    Work("make", "for i in 1 2 3 4 5 6 7 8; do echo \"int f$i(void) { return $i; }\" >f$i.c; done\n"
         "printf 'all: $(patsubst %%.c,%%.o,$(wildcard *.c))\\n' >Makefile\n"
         "make -j4 CFLAGS=-O2 && ls *.o | wc -l", "8", DEBIAN),
    Work("g++-filesystem", _file("c.cc", "#include <filesystem>\n#include <iostream>\n"
         'int main() { std::filesystem::copy("c.cc", "d.cc"); std::cout << "copied"; }')
         + "g++ -std=c++17 c.cc -o c && ./c", "copied", DEBIAN),
    Work("git", "git init -q . && git config user.email a@b && git config user.name c\n"
         "echo x >x && git add x && git commit -qm one && git clone -q . ../clone && git gc -q\n"
         "git log --oneline | wc -l", "1", DEBIAN),
    Work("python", _file("p.py", "import concurrent.futures as f, subprocess, tempfile, sqlite3\n"
         "import multiprocessing, asyncio, ssl, threading, socket\n"
         "if __name__ == '__main__':\n"
         "    with multiprocessing.Pool(4) as pool: print(sum(pool.map(abs, range(-9, 1))))\n"
         "    print(asyncio.run(asyncio.sleep(0, 'slept')), subprocess.check_output(['id', '-u']))")
         + "python3 p.py", "slept", DEBIAN),
    Work("archives", "mkdir t && seq 10000 >t/n && for z in z j J; do tar c${z}f t.$z t && "
         "tar x${z}f t.$z; done && echo packed", "packed", DEBIAN),
)  # fmt: skip

#: What takes the large image; tried where SANDBOXWORKER_TEST_REAL_WORK is set.
WHOLE = (
    *_sanitizers("clang", WORKBENCH),
    Work("clang-memory", _file("m.c", "#include <stdlib.h>\n"
         "int main(void) { int *p = malloc(8); if (p[1]) return 1; return 0; }")
         + "clang -g -fsanitize=memory m.c -o m; ./m 2>&1 || true", "use-of-uninitialized-value"),
    Work("gcc-thread", _file("t.c", _RACE) + "gcc -g -fsanitize=thread t.c -o t -lpthread\n"
         "./t 2>&1 | head -n 3; echo ended", "ended"),
    Work("cmake", _file("CMakeLists.txt", "cmake_minimum_required(VERSION 3.10)\nproject(x C)\n"
         "enable_testing()\nadd_executable(h h.c)\nadd_test(h h)") + _file("h.c", _HELLO)
         + "cmake -S . -B o && cmake --build o -j2 && cd o && ctest", "100% tests passed"),
    Work("ninja", _file("CMakeLists.txt", "cmake_minimum_required(VERSION 3.10)\nproject(x C)\n"
         "add_executable(h h.c)") + _file("h.c", _HELLO)
         + "cmake -G Ninja -S . -B o && ninja -C o && o/h", "hello"),
    Work("meson", _file("meson.build", "project('x', 'c')\ntest('h', executable('h', 'h.c'))")
         + _file("h.c", _HELLO) + "meson setup o && meson test -C o", "Ok:                 1"),
    Work("autotools", _file("configure.ac", "AC_INIT([x],[1])\nAM_INIT_AUTOMAKE([foreign])\n"
         "AC_PROG_CC\nLT_INIT\nAC_CONFIG_FILES([Makefile])\nAC_OUTPUT")
         + _file("Makefile.am", "bin_PROGRAMS = h\nh_SOURCES = h.c\nTESTS = h")
         + _file("h.c", _HELLO) + "autoreconf -fi && ./configure && make -j2 check && "
         "make distcheck 2>&1 | tail -n 5", "ready for distribution"),
    Work("ccache", _file("h.c", _HELLO) + "for i in 1 2; do ccache gcc -c h.c; done; "
         "ccache -s | head -n 3", "Cacheable calls"),
    Work("venv", "python3 -m venv --system-site-packages v && v/bin/python -m pip --version",
         "pip"),
    Work("pytest-xdist", _file("test_x.py", "import pytest\n"
         "@pytest.mark.parametrize('n', range(40))\n"
         "def test_x(n): assert n >= 0") + "python3 -m pytest -n 4 test_x.py", "40 passed"),
    Work("node", _file("w.js", "const fs = require('fs'), { Worker } = require('worker_threads');\n"
         "fs.watch('.'); fs.copyFileSync('w.js', 'v.js'); require('os').networkInterfaces();\n"
         "new Worker('setTimeout(() => 0, 10)', {eval: true}).on('exit', c => {"
         "console.log('worker', c); process.exit() });") + "node w.js", "worker 0"),
    Work("npm", _file("package.json", '{"name": "x", "version": "1.0.0", "scripts": '
         '{"test": "node -e \\"console.log(6 * 7)\\""}}') + "npm test && npm pack", "42"),
    Work("go", _file("go.mod", "module x\ngo 1.19") + _file("x_test.go", "package x\n"
         'import ("testing"; "net"; "io"; "os")\n'
         "func TestX(t *testing.T) { l, e := net.Listen(\"tcp\", \"127.0.0.1:0\")\n"
         "if e != nil { t.Fatal(e) }\ngo net.Dial(\"tcp\", l.Addr().String())\nl.Accept()\n"
         'f, _ := os.Open("go.mod"); g, _ := os.Create("g"); io.Copy(g, f) }')
         + "go test ./...", "ok"),
    Work("go-race", _file("go.mod", "module x\ngo 1.19") + _file("main.go", "package main\n"
         'func main() { c := make(chan int); go func() { c <- 1 }(); println("got", <-c) }')
         + "go run -race . 2>&1", "got 1"),
    Work("cargo", "cargo init -q --vcs none --name x . && cargo test --offline -q && "
         "cargo run --offline -q", "Hello, world!"),
    Work("java", _file("X.java", "public class X { public static void main(String[] a) throws "
         "Exception { var t = new Thread(() -> System.out.println(\"thread\")); t.start(); "
         "t.join(); } }") + "javac X.java && java -Xmx128m X", "thread"),
    Work("maven", _file("pom.xml", "<project><modelVersion>4.0.0</modelVersion><groupId>x</groupId>"
         "<artifactId>x</artifactId><version>1</version><properties>"
         "<maven.compiler.source>11</maven.compiler.source>"
         "<maven.compiler.target>11</maven.compiler.target></properties></project>")
         + "mkdir -p src/main/java && echo 'class Y {}' >src/main/java/Y.java\n"
         "mkdir -p ~/.m2 && cp -rs /usr/share/maven-repo ~/.m2/repository\n"
         "mvn -o -q package && ls target/*.jar", "x-1.jar"),
    Work("gdb", _file("h.c", _HELLO) + "gcc -g h.c -o h\n"
         "gdb -batch -ex 'break main' -ex run -ex bt -ex c ./h 2>&1", "main () at h.c",
         strict=False),
    Work("strace", "strace -f -o log sh -c 'id -u' && grep -c execve log", "2", strict=False),
    Work("valgrind", _file("l.c", _LEAK) + "gcc -g l.c -o l\n"
         "valgrind -q --leak-check=full ./l 2>&1",
         "definitely lost"),
    Work("postgresql", "initdb -D d >log && pg_ctl -D d -o '-k /tmp -c listen_addresses=127.0.0.1' "
         "-l log -w start && createdb -h 127.0.0.1 x && "
         "psql -h 127.0.0.1 -c 'create table t as select generate_series(1, 1000) n' x && "
         "psql -h /tmp -tc 'select sum(n) from t' x && pg_ctl -D d -m fast stop", "500500"),
    Work("postgresql-suite", _file("test_db.py", _DATABASE_SUITE)
         + "python3 -m pytest -n 2 test_db.py", "4 passed"),
    Work("chromium", "timeout 60 chromium --headless --no-sandbox --disable-gpu "
         "--disable-dev-shm-usage --user-data-dir=/build/c --dump-dom "
         "'data:text/html,<p id=x></p><script>x.textContent=6*7</script>' 2>/dev/null", ">42<"),
)  # fmt: skip
