"""What pyproject.toml cannot say: the scripts of the top level are in the wheel, too."""

from setuptools import setup
from setuptools.command.build_py import build_py

SCRIPTS = ("ppo_dialog.py", "ppo_dialog_deepspeed.py", "chat_app.py")


class BuildWithScripts(build_py):
    """Copies the scripts to ``dailydialog_gym/scripts/``, where `dailydialog_gym.commands` finds them."""

    def run(self):
        super().run()
        if not self.editable_mode:
            self.mkpath(f"{self.build_lib}/dailydialog_gym/scripts")
            for script in SCRIPTS:
                self.copy_file(script, f"{self.build_lib}/dailydialog_gym/scripts/{script}")


setup(cmdclass={"build_py": BuildWithScripts})
